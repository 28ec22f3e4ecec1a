"""What each pixel sees of a mesh: a z-buffer, normals, shadows and light from all around."""

import numpy as np
from scipy import sparse

SKY_DIRECTIONS = 28  # from which ambient light comes


def rasterise(points, triangles, size):
    """Find what each pixel sees: a plain z-buffer without anti-aliasing.

    Parameters
    ----------
    points : array (v, 3)
        Column and row in pixels, and depth, of which the smallest is seen. Pixel (i, j) covers
        [j, j + 1) x [i, i + 1) and is sampled at its centre.
    triangles : int array (f, 3)
        Vertex indices, in either orientation.
    size : (height, width)

    Returns
    -------
    pixels : int array (p,)
        Flat indices of the covered pixels, increasing.
    seen : int array (p,)
        The triangle that is seen there; of equally deep ones the first.
    weights : array (p, 3)
        Barycentric weights, linear on the screen.
    depth : array (p,)
    """
    height, width = size
    corners = np.asarray(points, np.float32)[triangles]
    x, y, z = np.moveaxis(corners, -1, 0)
    x1 = x[:, 1] - x[:, 0]
    x2 = x[:, 2] - x[:, 0]
    y1 = y[:, 1] - y[:, 0]
    y2 = y[:, 2] - y[:, 0]
    area = x1 * y2 - x2 * y1

    # Bounding boxes on the screen, in whole pixels.
    corners = corners[..., :2] - 0.5
    low = np.maximum(np.ceil(corners.min(1)), 0).astype(np.int32)
    high = np.minimum(np.floor(corners.max(1)), (width - 1, height - 1)).astype(np.int32)
    left, top = low.T.copy()
    columns, rows = (high - low + 1).T.copy()
    kept = np.flatnonzero((columns > 0) & (rows > 0) & (np.abs(area) > 1e-6))

    # One candidate fragment for every pixel of every bounding box: triangles are a few pixels
    # large, so little is wasted, and there is no loop over triangles.
    boxes = columns[kept] * rows[kept]
    triangle = np.repeat(kept, boxes)
    offset = np.arange(len(triangle)) - np.repeat(np.cumsum(boxes) - boxes, boxes)
    row, column = np.divmod(offset.astype(np.int32), columns[triangle])
    row += top[triangle]
    column += left[triangle]
    dx = column + np.float32(0.5) - x[triangle, 0]
    dy = row + np.float32(0.5) - y[triangle, 0]
    scale = 1 / np.where(np.abs(area) > 1e-6, area, 1)
    w1 = dx * (y2 * scale)[triangle] - dy * (x2 * scale)[triangle]
    w2 = dy * (x1 * scale)[triangle] - dx * (y1 * scale)[triangle]
    inside = np.flatnonzero((w1 >= 0) & (w2 >= 0) & (w1 + w2 <= 1))
    triangle = triangle[inside]
    w1 = w1[inside]
    w2 = w2[inside]
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
    """Scale the vectors in the rows to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def vertex_normals(vertices, triangles, gather) -> np.ndarray:
    """Return unit normals, area-weighted; ``gather`` is the (vertices x triangles) :func:`incidence`."""
    a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
    return unit(gather @ np.cross(b - a, c - a))


def incidence(triangles, count: int) -> sparse.csr_matrix:
    """Return the sparse (count x len(triangles)) matrix with ones where a vertex is in a triangle."""
    vertex = triangles.ravel()
    triangle = np.repeat(np.arange(len(triangles)), 3)
    ones = np.ones(triangles.size, np.float32)
    return sparse.csr_matrix((ones, (vertex, triangle)), shape=(count, len(triangles)))


def stacked(*coordinates) -> np.ndarray:
    """Stack coordinates, which are broadcast together, to vectors along a new last axis."""
    return np.stack(np.broadcast_arrays(*coordinates), -1)


def ambient_light(vertices, triangles, gather) -> np.ndarray:
    """Return the share of the sky that each vertex sees, from depth maps of many directions."""
    # A Fibonacci sphere: directions spread evenly.
    i = np.arange(SKY_DIRECTIONS) + 0.5
    height = 1 - 2 * i / SKY_DIRECTIONS
    turn = np.pi * (1 + 5**0.5) * i
    ring = np.sqrt(1 - height**2)
    directions = stacked(ring * np.cos(turn), ring * np.sin(turn), height).astype(np.float32)
    normals = vertex_normals(vertices, triangles, gather)
    seen = np.zeros(len(vertices))
    total = np.full(len(vertices), 1e-6)
    for direction in directions:
        weight = np.clip(normals @ direction, 0, None) * (0.6 + 0.4 * max(direction[2], 0))
        lit = sunlit(vertices, triangles, direction, vertices, resolution=112, bias=0.006)
        seen += weight * lit
        total += weight
    return np.clip(seen / total, 0, 1)


def sunlit(vertices, triangles, direction, where, *, resolution, bias) -> np.ndarray:
    """Return how much of a distant light reaches points: 1 in the light, 0 in shadow, smooth between.

    Parameters
    ----------
    vertices, triangles : arrays (v, 3) and (f, 3)
        The mesh that casts the shadow.
    direction : array (3,)
        Towards the light.
    where : array (n, 3)
        Points that are asked about.
    resolution : int
        Side of the shadow map in pixels.
    bias : float
        Depth in metres by which a point may lie behind the map and still be lit.
    """
    direction = direction.astype(np.float64)
    across = np.cross((0.12, 0.31, 1.0), direction)
    across /= np.linalg.norm(across)
    # Two axes across the direction, and one away from the light: the depth in the map.
    basis = np.stack([across, np.cross(direction, across), -direction], 1).astype(np.float32)
    low = np.float32(-0.16)
    scale = resolution / np.float32(0.34)
    points = vertices @ basis
    target = where @ basis
    screen = np.column_stack([(points[:, :2] - low) * scale, points[:, 2]])
    pixels, _, _, depth = rasterise(screen, triangles, (resolution, resolution))
    shadow_map = np.full(resolution * resolution, np.inf, np.float32)
    shadow_map[pixels] = depth

    # Bilinear interpolation of "lit or not" between the four nearest pixels of the map.
    at = (target[:, :2] - low) * scale - 0.5
    corner = np.floor(at).astype(int)
    share = (at % 1).astype(np.float32)
    lit = np.zeros(len(target), np.float32)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = np.clip(corner + (dx, dy), 0, resolution - 1).T
        weight = np.abs(1 - dx - share[:, 0]) * np.abs(1 - dy - share[:, 1])
        lit += weight * (target[:, 2] <= shadow_map[row * resolution + column] + bias)
    return lit


def linear(srgb) -> np.ndarray:
    """Convert sRGB in 0..255 to linear light in 0..1 (gamma 2.2)."""
    return (np.asarray(srgb, np.float64) / 255) ** 2.2


def bump(value, centre, width) -> np.ndarray:
    """Return a smooth bump: 1 at the centre, 1/e at ``width`` from it."""
    return np.exp(-(((value - centre) / width) ** 2))


def step(value, edge, softness) -> np.ndarray:
    """Return a smooth step: 0 below the edge, 1 above it."""
    return 1 / (1 + np.exp(-np.clip((value - edge) / softness, -30, 30)))
