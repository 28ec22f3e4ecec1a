"""What each pixel sees of a mesh: a z-buffer, normals, shadows and light from all around."""

import numpy as np
from scipy import sparse


def rasterise(points, triangles, size):
    """Find what each pixel sees: a plain z-buffer, without any anti-aliasing.

    Points, shape (v, 3), are column and row in pixels (pixel (i, j) covers [j, j + 1) × [i, i + 1)
    and is sampled at its centre) and depth, of which the smallest is seen. Triangles, shape (f, 3),
    are vertex indices in either orientation; the size is (height, width). Of the p covered pixels
    are returned: their increasing flat indices; the triangle seen there, of equally deep ones the
    first; barycentric weights, shape (p, 3), linear on the screen; and depths.
    """
    height, width = size
    corners = np.asarray(points, np.float32)[triangles]
    x, y, z = np.moveaxis(corners, -1, 0)
    x1, x2 = x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]
    y1, y2 = y[:, 1] - y[:, 0], y[:, 2] - y[:, 0]
    area = x1 * y2 - x2 * y1

    corners = corners[..., :2] - 0.5
    low = np.maximum(np.ceil(corners.min(1)), 0).astype(np.int32)
    high = np.minimum(np.floor(corners.max(1)), (width - 1, height - 1)).astype(np.int32)
    (left, top), (columns, rows) = low.T.copy(), (high - low + 1).T.copy()  # of the bounding box
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
    scale = 1 / np.where(np.abs(area) > 1e-6, area, 1)
    w1 = dx * (y2 * scale)[triangle] - dy * (x2 * scale)[triangle]
    w2 = dy * (x1 * scale)[triangle] - dx * (y1 * scale)[triangle]
    inside = np.flatnonzero((w1 >= 0) & (w2 >= 0) & (w1 + w2 <= 1))
    triangle, w1, w2 = triangle[inside], w1[inside], w2[inside]
    pixel = row[inside].astype(np.int64) * width + column[inside]
    z0 = z[triangle, 0]
    depth = z0 + w1 * (z[triangle, 1] - z0) + w2 * (z[triangle, 2] - z0)

    nearest = np.full(height * width, np.inf)
    np.minimum.at(nearest, pixel, depth)
    front = np.flatnonzero(depth == nearest[pixel])
    first = front[np.unique(pixel[front], return_index=True)[1]]
    weights = np.stack([1 - w1[first] - w2[first], w1[first], w2[first]], 1)
    return pixel[first], triangle[first], weights, depth[first]


def unit(vectors) -> np.ndarray:
    """The vectors in the rows, scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def vertex_normals(vertices, triangles, gather) -> np.ndarray:
    """Unit normals, area-weighted; ``gather`` is the (vertices × triangles) incidence matrix."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    return unit(gather @ np.cross(b - a, c - a))


def incidence(triangles, count: int) -> sparse.csr_matrix:
    """Sparse (count × len(triangles)) matrix of ones where a vertex belongs to a triangle."""
    place = triangles.ravel(), np.repeat(np.arange(len(triangles)), 3)
    ones = np.ones(triangles.size, np.float32)
    return sparse.csr_matrix((ones, place), shape=(count, len(triangles)))


def stacked(*coordinates) -> np.ndarray:
    """Vectors along a new last axis, from their coordinates, which are broadcast together."""
    return np.stack(np.broadcast_arrays(*coordinates), -1)


def ambient_light(vertices, triangles, gather) -> np.ndarray:
    """Share of the sky each vertex sees, from depth maps of directions spread over the sphere."""
    i = np.arange(28) + 0.5  # Fibonacci sphere
    height, turn = 1 - 2 * i / 28, np.pi * (1 + 5**0.5) * i
    ring = np.sqrt(1 - height**2)
    normals = vertex_normals(vertices, triangles, gather)
    seen, total = np.zeros(len(vertices)), np.full(len(vertices), 1e-6)
    for direction in stacked(ring * np.cos(turn), ring * np.sin(turn), height).astype(np.float32):
        weight = np.clip(normals @ direction, 0, None) * (0.6 + 0.4 * max(direction[2], 0))
        lit = sunlit(vertices, triangles, direction, vertices, resolution=112, bias=0.006)
        seen += weight * lit
        total += weight
    return np.clip(seen / total, 0, 1)


def sunlit(vertices, triangles, direction, where, *, resolution, bias) -> np.ndarray:
    """1 where a distant light in this direction reaches, 0 in shadow, smoothed at the border."""
    direction = direction.astype(np.float64)
    across = np.cross((0.12, 0.31, 1.0), direction)
    across /= np.linalg.norm(across)
    # Two axes across the direction, and away from it: the depth seen from there.
    basis = np.stack([across, np.cross(direction, across), -direction], 1).astype(np.float32)
    low, scale = np.float32(-0.16), resolution / np.float32(0.34)
    points, target = vertices @ basis, where @ basis
    screen = np.column_stack([(points[:, :2] - low) * scale, points[:, 2]])
    pixels, _, _, depth = rasterise(screen, triangles, (resolution, resolution))
    buffer = np.full(resolution * resolution, np.inf, np.float32)
    buffer[pixels] = depth
    at = (target[:, :2] - low) * scale - 0.5
    corner, share = np.floor(at).astype(int), (at % 1).astype(np.float32)
    lit = np.zeros(len(target), np.float32)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = np.clip(corner + (dx, dy), 0, resolution - 1).T
        weight = np.abs(1 - dx - share[:, 0]) * np.abs(1 - dy - share[:, 1])
        lit += weight * (target[:, 2] <= buffer[row * resolution + column] + bias)
    return lit


def linear(srgb) -> np.ndarray:
    """sRGB in 0..255 to linear light in 0..1 (gamma 2.2)."""
    return (np.asarray(srgb, np.float64) / 255) ** 2.2


def bump(value, centre, width) -> np.ndarray:
    return np.exp(-(((value - centre) / width) ** 2))


def step(value, edge, softness) -> np.ndarray:
    """0 below the edge, 1 above it."""
    return 1 / (1 + np.exp(-np.clip((value - edge) / softness, -30, 30)))
