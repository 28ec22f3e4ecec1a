"""TODO."""

from __future__ import annotations

import numpy as np
from scipy import sparse


# Rasteriser
def rasterise(points, triangles, size):
    """Find what each pixel sees: a plain z-buffer, without any anti-aliasing.

    Parameters
    ----------
    points : array, shape (v, 3)
        Column and row in pixels (pixel (i, j) covers [j, j + 1) × [i, i + 1) and is sampled at its
        centre) and depth; the smallest depth is seen.
    triangles : int array, shape (f, 3)
        Vertex indices, in either orientation.
    size : (height, width)

    Returns
    -------
    pixels : int array, shape (p,)
        Flat indices of the covered pixels, increasing.
    seen : int array, shape (p,)
        The triangle seen there; of equally deep ones the first.
    weights : float32 array, shape (p, 3)
        Barycentric coordinates, linear on the screen.
    depth : float32 array, shape (p,)
    """
    height, width = size
    corners = np.asarray(points, np.float32)[triangles]
    x, y, z = corners[..., 0], corners[..., 1], corners[..., 2]
    x1, x2 = x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]
    y1, y2 = y[:, 1] - y[:, 0], y[:, 2] - y[:, 0]
    area = x1 * y2 - x2 * y1

    left = np.maximum(np.ceil(x.min(1) - 0.5), 0).astype(np.int32)
    top = np.maximum(np.ceil(y.min(1) - 0.5), 0).astype(np.int32)
    columns = np.minimum(np.floor(x.max(1) - 0.5), width - 1).astype(np.int32) - left + 1
    rows = np.minimum(np.floor(y.max(1) - 0.5), height - 1).astype(np.int32) - top + 1
    kept = np.flatnonzero((columns > 0) & (rows > 0) & (np.abs(area) > 1e-6))

    # One candidate fragment for every pixel of every bounding box: triangles are a few pixels
    # large, so little is wasted, and there is no loop over triangles.
    boxes = columns[kept] * rows[kept]
    triangle = np.repeat(kept, boxes)
    offset = np.arange(len(triangle)) - np.repeat(np.cumsum(boxes) - boxes, boxes)
    row, column = np.divmod(offset.astype(np.int32), columns[triangle])
    row += top[triangle]
    column += left[triangle]
    dx, dy = column + np.float32(0.5) - x[triangle, 0], row + np.float32(0.5) - y[triangle, 0]
    scale = (1 / np.where(np.abs(area) > 1e-6, area, 1)).astype(np.float32)
    w1 = dx * (y2 * scale)[triangle] - dy * (x2 * scale)[triangle]
    w2 = dy * (x1 * scale)[triangle] - dx * (y1 * scale)[triangle]
    inside = np.flatnonzero((w1 >= 0) & (w2 >= 0) & (w1 + w2 <= 1))
    triangle, w1, w2 = triangle[inside], w1[inside], w2[inside]
    pixel = row[inside].astype(np.int64) * width + column[inside]
    z0 = z[triangle, 0]
    depth = z0 + w1 * (z[triangle, 1] - z0) + w2 * (z[triangle, 2] - z0)
    if not len(depth):
        empty = np.zeros(0, np.int64)
        return empty, empty, np.zeros((0, 3), np.float32), np.zeros(0, np.float32)

    # Depth and fragment number share one integer, so a single minimum settles each pixel.
    near, far = float(depth.min()), float(depth.max())
    steps = ((depth.astype(np.float64) - near) * (2**36 / max(far - near, 1e-12))).astype(np.int64)
    key = (steps << 26) | np.arange(len(steps))
    buffer = np.full(height * width, np.iinfo(np.int64).max)
    np.minimum.at(buffer, pixel, key)
    pixels = np.flatnonzero(buffer != np.iinfo(np.int64).max)
    first = buffer[pixels] & (2**26 - 1)
    weights = np.stack([1 - w1[first] - w2[first], w1[first], w2[first]], 1)
    return pixels, triangle[first], weights, depth[first]


def vertex_normals(vertices, triangles, gather) -> np.ndarray:
    """Unit normals, area-weighted; ``gather`` is the (vertices × triangles) incidence matrix."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    normals = gather @ np.cross(b - a, c - a)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def incidence(triangles, count: int) -> sparse.csr_matrix:
    """Sparse (count × len(triangles)) matrix of ones where a vertex belongs to a triangle."""
    rows = triangles.ravel()
    columns = np.repeat(np.arange(len(triangles)), 3)
    ones = np.ones(len(rows), np.float32)
    return sparse.csr_matrix((ones, (rows, columns)), shape=(count, len(triangles)))


def _grid(rows: int, columns: int, *, closed: bool = False) -> np.ndarray:
    """Triangles of a rows × columns grid of vertices, closed along the columns or not."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns - (not closed)), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    quads = np.stack([a, b, a + columns, b, b + columns, a + columns], -1)
    return quads.reshape(-1, 3).astype(np.int32)


def _ambient(vertices, triangles, gather, directions: int = 28) -> np.ndarray:
    """Share of the sky each vertex sees, from depth maps of directions spread over the sphere."""
    i = np.arange(directions) + 0.5  # Fibonacci sphere
    height, turn = 1 - 2 * i / directions, np.pi * (1 + 5**0.5) * i
    ring = np.sqrt(1 - height**2)
    towards = np.stack([ring * np.cos(turn), ring * np.sin(turn), height], 1).astype(np.float32)
    normals = vertex_normals(vertices, triangles, gather)
    seen, total = np.zeros(len(vertices)), np.full(len(vertices), 1e-6)
    for direction in towards:
        weight = np.clip(normals @ direction, 0, None) * (0.6 + 0.4 * max(direction[2], 0))
        lit = _shadow(vertices, triangles, direction, vertices, resolution=112, bias=0.006)
        seen += weight * lit
        total += weight
    return np.clip(seen / total, 0, 1)


def _basis(direction) -> np.ndarray:
    """Rows: two axes across a direction, and away from it (depth seen from there)."""
    direction = np.asarray(direction, np.float64)
    across = np.cross((0.12, 0.31, 1.0), direction)
    across /= np.linalg.norm(across)
    return np.stack([across, np.cross(direction, across), -direction]).astype(np.float32)


def _shadow(vertices, triangles, direction, where, *, resolution, bias) -> np.ndarray:
    """1 where a distant light in this direction reaches, 0 in shadow, smoothed at the border."""
    basis = _basis(direction)
    points = vertices @ basis.T
    target = points if where is vertices else where @ basis.T
    low = np.array((-0.16, -0.16), np.float32)
    scale = resolution / np.float32(0.34)
    screen = np.column_stack([(points[:, :2] - low) * scale, points[:, 2]])
    pixels, _, _, depth = rasterise(screen, triangles, (resolution, resolution))
    buffer = np.full(resolution * resolution, np.inf, np.float32)
    buffer[pixels] = depth
    at = (target[:, :2] - low) * scale - 0.5
    corner, share = np.floor(at).astype(int), (at % 1).astype(np.float32)
    lit = np.zeros(len(target), np.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            column = np.clip(corner[:, 0] + dx, 0, resolution - 1)
            row = np.clip(corner[:, 1] + dy, 0, resolution - 1)
            weight = np.abs(1 - dx - share[:, 0]) * np.abs(1 - dy - share[:, 1])
            lit += weight * (target[:, 2] <= buffer[row * resolution + column] + bias)
    return lit
