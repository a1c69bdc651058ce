"""Where a plot's labels go: each near its point, and over as little of everything else as can be."""

from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels of the SVG

DISTANCES = (9, 15, 24, 36, 50, 66)  # from the point to the label's edge, in pixels
DIRECTIONS = ((1, 0), (-1, 0), (1, 0.8), (1, -0.8), (-1, 0.8), (-1, -0.8), (0, 1), (0, -1))  # right, up; best first
OUTSIDE_WEIGHT = 4  # times as bad as covering something is leaving the frame


def place_label(point: tuple[float, float], size: tuple[float, float], occupied: Sequence[Box], frame: Box) -> Box:
    """Return the box for a label that covers least of what is drawn and leaves the frame least; nearer is better.

    Args:
        point: what the label names, in pixels.
        size: width and height of the label, in pixels.
        occupied: boxes that the label should not cover.
        frame: box that the label should stay in.
    """
    (x, y), (width, height) = point, size
    choices: list[tuple[float, Box]] = []
    for distance in DISTANCES:
        for right, up in DIRECTIONS:
            middle = (x + right * (distance + width / 2), y + up * (distance + height / 2))
            box = (middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2)
            covered = sum(overlap(box, other) for other in occupied)
            outside = width * height - overlap(box, frame)
            choices.append((covered + OUTSIDE_WEIGHT * outside + distance, box))
    return min(choices, key=lambda choice: choice[0])[1]


def overlap(first: Box, second: Box) -> float:
    """Return the area that two boxes share, in square pixels."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)
