"""Drawn anatomy of a frontal chest radiograph: the invented patients of `jaxpneumo.synthetic.radiographs`.

Tissue is summed as the beam sums it: every structure adds (or, being air, takes away) thickness, in units
where a chest is about 1 thick; `exposure` turns the sum into grey. Nothing here comes from any real picture.

Coordinates are those of the thorax: x is 0 at the spine and -1 / +1 at the widest inner chest wall, left to
right in the picture (so -1 is the patient's right); y is 0 at the lungs' tips and 1 near the diaphragm's tops.
Points are float arrays (P, 2) of (x, y); images are (n, n).
"""

from dataclasses import dataclass

import cv2
import numpy as np

_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class InventedPatient:
    """What stays the same in every picture of one person: factors around 1, or shifts in thorax units."""

    sex: str
    age: int
    girth: float
    width: float
    height: float
    shoulder: float
    apex: float
    base: float
    heart: float
    knob: float
    dome: float
    arch: float
    rib_drop: float
    rib_pitch: float
    rib_width: float
    clavicle: float
    scoliosis: float


@dataclass(frozen=True)
class Frame:
    """Where the thorax lies in an (n, n) picture.

    `centre` and `top` are fractions of n, `width` (of one half) and `height` are in pixels, `tilt` in radians.
    """

    n: int
    centre: float
    top: float
    width: float
    height: float
    tilt: float

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Thorax coordinates (..., 2) to pixel coordinates (..., 2)."""
        x, y = points[..., 0] * self.width, (points[..., 1] - 0.5) * self.height
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        left, top = self.centre * self.n, self.top * self.n + 0.5 * self.height
        return np.stack([left + cos * x - sin * y, top + sin * x + cos * y], axis=-1)

    def scaled(self, n: int) -> "Frame":
        """The same frame in a picture of another size."""
        factor = n / self.n
        return Frame(n, self.centre, self.top, self.width * factor, self.height * factor, self.tilt)

    def by_height(self, heights: list[float], values: list[float]) -> np.ndarray:
        """Values interpolated over y, as float32 (n, 1)."""
        rows = (np.arange(self.n) - self.top * self.n) / self.height
        return np.interp(rows, heights, values).astype(np.float32)[:, None]


@dataclass(frozen=True)
class Pose:
    """What one picture does to the patient: the view, how wide the heart gets, how far each arm is spread."""

    view: str
    heart: float
    arms: tuple[float, float]


def invent_patient(seed: int) -> InventedPatient:
    """A patient from a seed: sex and age spread like the challenge's, build and proportions varied."""
    rng = np.random.default_rng([seed, 1])
    return InventedPatient(
        sex="F" if rng.random() < 0.45 else "M",
        age=int(np.clip(rng.normal(47, 17), 8, 90)),
        girth=rng.uniform(0.7, 1.7),
        width=rng.uniform(0.95, 1.05),
        height=rng.uniform(0.93, 1.05),
        shoulder=rng.uniform(-0.06, 0.08),
        apex=rng.uniform(-0.05, 0.05),
        base=rng.uniform(-0.07, 0.03),
        heart=rng.uniform(0.82, 1.2),
        knob=rng.uniform(0.85, 1.3),
        dome=rng.uniform(0.0, 0.07),
        arch=rng.uniform(0.6, 1.35),
        rib_drop=rng.uniform(0.27, 0.4),
        rib_pitch=rng.uniform(0.098, 0.112),
        rib_width=rng.uniform(0.036, 0.046),
        clavicle=rng.uniform(-0.03, 0.09),
        scoliosis=rng.normal(0, 0.012),
    )


def smooth_curve(points: np.ndarray | list[tuple[float, float]], steps: int = 12) -> np.ndarray:
    """Catmull-Rom curve through (P, 2) points: ((P - 1) * steps + 1, 2) points."""
    points = np.asarray(points, float)
    before, after = 2 * points[:1] - points[1:2], 2 * points[-1:] - points[-2:-1]
    p = np.concatenate([before, points, after])
    a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    t = (np.arange(steps) / steps)[None, :, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * (b - c) + d - a) * t**3)
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])


def ellipse(
    centre: tuple[float, float], radius: tuple[float, float] | np.ndarray, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Points (48, 2) of an ellipse, uneven when a generator is given."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius
    if rng is not None:
        uneven = np.asarray(sum(rng.normal(0, 0.08) * np.cos(k * angle + k) for k in (2, 3, 4)))
        points *= 1 + uneven[:, None]
    return points + centre


def paint(layer: np.ndarray, frame: Frame, polygon: np.ndarray, value: int) -> None:
    """Fills a polygon of thorax points in a uint8 layer, edges anti-aliased."""
    corners = np.round(frame.pixels(polygon) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(layer, [corners], int(value), cv2.LINE_AA, _SUBPIXEL_BITS)


def fill(frame: Frame, polygon: np.ndarray) -> np.ndarray:
    """A filled polygon of thorax points as uint8 (n, n), 255 inside."""
    layer = np.zeros((frame.n, frame.n), np.uint8)
    paint(layer, frame, polygon, 255)
    return layer


def stroke(layer: np.ndarray, frame: Frame, curve: np.ndarray, value: int, width: float, closed: bool = False) -> None:
    """Draws one curve (P, 2) or several (M, P, 2) into a uint8 layer; `width` in pixels of a 1024 picture."""
    points = np.round(frame.pixels(curve) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    curves = list(points.reshape(-1, *points.shape[-2:]))
    thickness = max(1, round(width * frame.n / 1024))
    cv2.polylines(layer, curves, closed, int(value), thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def blur(image: np.ndarray, frame: Frame, sigma: float) -> np.ndarray:
    """Gaussian blur; `sigma` in pixels of a 1024 picture."""
    return cv2.GaussianBlur(image, (0, 0), sigma * frame.n / 1024)


def _soft(frame: Frame, polygon: np.ndarray, sigma: float) -> np.ndarray:
    """A filled polygon with blurred edges, float32 0..1."""
    return blur(fill(frame, polygon), frame, sigma).astype(np.float32) / 255


def _chord(mask: np.ndarray, radius: float) -> np.ndarray:
    """The beam's way through a round body: 0 at the mask's edge, 1 from `radius` pixels inwards."""
    depth = np.minimum(cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 5) / radius, 1.0)
    return np.sqrt(depth * (2.0 - depth))


def wall(patient: InventedPatient) -> np.ndarray:
    """Inner chest wall of one side, from the trachea over the apex to the costophrenic angle; x >= 0."""
    a, b = patient.apex, patient.base
    points = [(0.165, 0.2), (0.185, 0.09), (0.27 + a, 0.02), (0.40 + a, 0.0), (0.54 + a, 0.035)]
    points += [(0.68 + a, 0.12), (0.82 + 0.6 * a, 0.29), (0.92 + 0.3 * a + 0.2 * b, 0.52)]
    points += [(0.98 + 0.6 * b, 0.78), (1.0 + b, 1.0), (0.985 + b, 1.17)]
    return smooth_curve(points)


def _dome(patient: InventedPatient, side: int) -> np.ndarray:
    """Diaphragm of one side from the costophrenic angle to the midline; x >= 0. The left lies lower."""
    low, arch = (patient.dome if side > 0 else 0.0), patient.arch
    lower = low * np.asarray([0, 0.4, 1, 1, 1, 1, 0]) + 0.5 * patient.dome * np.asarray([0, 0, 0, 0, 0, 0, 1])
    rise = np.asarray([0.0, 0.065, 0.12, 0.16, 0.17, 0.15, 0.10]) * arch
    x = np.asarray([0.985, 0.93, 0.82, 0.66, 0.48, 0.30, -0.02])
    x += patient.base * np.asarray([1, 1, 0.7, 0.3, 0, 0, 0])
    return smooth_curve(np.stack([x, 1.17 - rise + lower], axis=1))


def lung_outline(patient: InventedPatient, side: int) -> np.ndarray:
    """Closed outline of one lung as it would be without heart and mediastinum; side -1 or +1."""
    return np.concatenate([wall(patient), _dome(patient, side), [(-0.02, 0.25)]]) * (side, 1.0)


def mediastinum_outline(patient: InventedPatient, heart: float) -> np.ndarray:
    """Closed outline of great vessels and heart; `heart` widens the heart (1: healthy, PA view)."""
    k, h = patient.knob, heart * patient.heart
    right = [(-0.13, -0.3), (-0.14, 0.0), (-0.155, 0.15), (-0.165, 0.3), (-0.18, 0.45), (-0.22 * h, 0.58)]
    right += [(-0.28 * h, 0.72), (-0.29 * h, 0.85), (-0.25 * h, 1.0), (-0.22 * h, 1.14)]
    left = [(0.45 * h, 1.14), (0.57 * h, 1.04), (0.6 * h, 0.93), (0.54 * h, 0.8), (0.43 * h, 0.66)]
    left += [(0.3 * h, 0.53), (0.225, 0.44), (0.215, 0.37), (0.19, 0.31), (0.21 * k, 0.265)]
    left += [(0.215 * k, 0.22), (0.18 * k, 0.165), (0.145, 0.1), (0.13, 0.0), (0.13, -0.3)]
    return np.concatenate([smooth_curve(right), smooth_curve(left)])


def lung_fields(patient: InventedPatient, frame: Frame, heart: float) -> tuple[np.ndarray, np.ndarray]:
    """Visible lung of each side: uint8 (n, n), 0/1, in picture order (patient's right first)."""
    middle = fill(frame, mediastinum_outline(patient, heart)) > 127
    right, left = (fill(frame, lung_outline(patient, side)) > 127 for side in (-1, 1))
    return (right & ~middle).astype(np.uint8), (left & ~middle).astype(np.uint8)


def wall_distance(patient: InventedPatient, frame: Frame, side: int) -> np.ndarray:
    """Distance in pixels from the apex and the lateral wall of one side, float32 (n, n); 0 outside."""
    from_the_top = wall(patient)[36:]
    closing = [(0.985 + patient.base, 1.9), (-0.9, 1.9), (-0.9, 0.0)]
    cavity = fill(frame, np.concatenate([from_the_top, closing]) * (side, 1.0))
    return cv2.distanceTransform((cavity > 127).astype(np.uint8), cv2.DIST_L2, 5)


def _body(patient: InventedPatient, frame: Frame, pose: Pose, rng: np.random.Generator) -> np.ndarray:
    """Trunk, neck, arms and chin."""
    g, s = patient.girth, patient.shoulder
    half = [(0.30, -1.2), (0.29, -0.45), (0.33, -0.3), (0.5, -0.2), (0.9, -0.14 + s), (1.3, -0.08 + s)]
    half += [(1.55, 0.02 + s), (1.6, 0.2)]
    flank = [(1.52, 0.4), (1.37 + 0.05 * g, 0.55), (1.22 + 0.07 * g, 0.8), (1.13 + 0.09 * g, 1.1)]
    flank += [(1.1 + 0.13 * g, 1.5), (1.1 + 0.18 * g, 2.4)]
    side = np.concatenate([smooth_curve(half), smooth_curve(flank)])
    trunk = fill(frame, np.concatenate([side, side[::-1] * (-1, 1)]))
    body = _chord(trunk, 0.5 * frame.width)
    for sign, a in zip((-1, 1), pose.arms, strict=True):
        arm = [(1.05, -0.06 + s), (1.4, -0.05 + s), (1.68, 0.12 + s), (1.78 + a, 0.5), (1.85 + 1.6 * a, 1.0)]
        arm += [(1.9 + 2 * a, 1.6), (1.42 + 2 * a, 1.6), (1.38 + 1.6 * a, 1.0), (1.3 + a, 0.55), (1.1, 0.3)]
        limb = _chord(fill(frame, smooth_curve(arm) * (sign, 1)), 0.24 * frame.width)
        body = np.maximum(body, 0.75 * limb)
    level = frame.by_height([-0.5, -0.1, 0.1, 0.5, 0.9, 1.3, 1.8], [0.60, 0.55, 0.62, 0.70, 0.76, 0.8, 0.8])
    body = body * level * (0.88 + 0.12 * g)
    chin = ellipse((rng.normal(0, 0.1), rng.uniform(-0.95, -0.55)), (0.42, 0.3))
    body = np.maximum(body, 0.95 * _chord(fill(frame, chin), 0.2 * frame.width))
    return blur(body.astype(np.float32), frame, 4)


def soft_tissue(patient: InventedPatient, frame: Frame, pose: Pose, rng: np.random.Generator) -> np.ndarray:
    """Everything without fine detail: body, lungs, heart, abdomen, breasts; float32 (n, n) of thickness."""
    total = _body(patient, frame, pose, rng)
    air, reach, chest = np.zeros_like(total), np.zeros_like(total), np.zeros((frame.n, frame.n), np.uint8)
    for side in (-1, 1):
        outline = fill(frame, lung_outline(patient, side))
        chest = np.maximum(chest, outline)
        inwards = wall_distance(patient, frame, side)
        reach = np.maximum(reach, inwards)
        depth = np.minimum(inwards / (0.42 * frame.width), 1.0)
        field = blur(outline, frame, 3.0).astype(np.float32) / 255
        air = np.maximum(air, field * (0.36 + 0.64 * np.sqrt(depth * (2.0 - depth))))
    middle = fill(frame, mediastinum_outline(patient, pose.heart))
    edge = blur(middle, frame, 4.0).astype(np.float32) / 255
    # Lung lies before and behind the heart and the great vessels too.
    air = np.maximum(air, 0.9 * edge * frame.by_height([-0.15, 0.2, 0.9, 1.0], [0, 1, 1, 0]))
    total -= air * frame.by_height([0, 0.5, 1.1], [0.40, 0.46, 0.52])

    # Ribs and muscle run along the beam just outside of the lung and show as one band.
    outside = cv2.distanceTransform((chest < 128).astype(np.uint8), cv2.DIST_L2, 5) / (0.05 * frame.width)
    band = np.exp(-((outside - 0.8) ** 2)) * (reach == 0) * (total > 0.1)
    total += 0.11 * band * frame.by_height([0, 0.3, 1.1, 1.5], [0.5, 1, 1, 0])

    belly = 1 - blur(chest, frame, 4).astype(np.float32) / 255
    total += belly * np.minimum(total, 0.5) * frame.by_height([0.8, 1.0, 1.4], [0.0, 0.3, 0.9])
    total -= _bowel_gas(patient, frame, rng)
    core = blur(_chord(middle, 0.42 * frame.width).astype(np.float32), frame, 6)
    below = belly * frame.by_height([0.7, 0.9], [0, 1])
    total += (0.24 * edge + 0.30 * core) * (1 - below) * frame.by_height([-0.3, -0.1], [0, 1])
    for side in (-1, 1):
        for _ in range(5):
            centre = (side * rng.uniform(0.2, 0.29), 0.44 - 0.02 * side + rng.uniform(-0.06, 0.1))
            total += 0.04 * _soft(frame, ellipse(centre, rng.uniform(0.025, 0.06, 2), rng), 5)
    if patient.sex == "F" and patient.age > 14:
        total += _breasts(frame, rng) * rng.uniform(0.06, 0.2)
    return total


def _bowel_gas(patient: InventedPatient, frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Gas in stomach and colon, as thickness to take away."""
    gas = np.zeros((frame.n, frame.n), np.float32)
    shapes = []
    if rng.random() < 0.75:
        size, y = rng.uniform(0.5, 1.2), 1.2 - 0.16 * patient.arch + patient.dome
        shapes.append(ellipse((rng.normal(0.5, 0.1), y + 0.07 * size), (0.19 * size, 0.06 * size), rng))
    for _ in range(rng.integers(0, 7)):
        place = (rng.uniform(-0.6, 0.8), rng.uniform(1.3, 1.7))
        shapes.append(ellipse(place, rng.uniform(0.05, 0.12, 2), rng))
    for shape in shapes:
        gas = np.maximum(gas, rng.uniform(0.15, 0.32) * _chord(fill(frame, shape), 0.07 * frame.width))
    return blur(gas, frame, 4)


def _breasts(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Both breasts, 0..1, with their lower edge the clearest."""
    shadow = np.zeros((frame.n, frame.n), np.float32)
    size, y = rng.uniform(0.75, 1.15), rng.uniform(0.72, 0.95)
    for side in (-1, 1):
        outline = ellipse((side * 0.66, y + rng.normal(0, 0.01)), (0.44 * size, 0.3 * size))
        shadow = np.maximum(shadow, _chord(fill(frame, outline), 0.3 * frame.width))
    shadow = blur(shadow.astype(np.float32), frame, 5)
    return shadow * frame.by_height([y - 0.3 * size, y, y + 0.3 * size], [0.0, 0.5, 1.0])


def _bone(layer: np.ndarray, frame: Frame, curve: np.ndarray, width: np.ndarray, inside: int, edge: int) -> None:
    """A band of bone along a curve, `width` in thorax heights: filled, with denser cortex along both edges."""
    direction = np.gradient(curve, axis=0)
    normal = np.stack([-direction[:, 1], direction[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    half = normal * np.reshape(width, (-1, 1)) / 2 * (1.3, 1.0)
    paint(layer, frame, np.concatenate([curve - half, (curve + half)[::-1]]), inside)
    stroke(layer, frame, curve - half, edge, 2.4)
    stroke(layer, frame, curve + half, edge, 2.4)


def _ribs(patient: InventedPatient, frame: Frame, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Layers of the posterior and of the anterior halves of the ribs: hoops seen from the front."""
    back, front = (np.zeros((frame.n, frame.n), np.uint8) for _ in range(2))
    edge = wall(patient)[36:]
    for number in range(11):
        start = 0.015 + patient.rib_pitch * number
        drop = patient.rib_drop * np.interp(number, [0, 2, 10], [0.45, 0.8, 1.15])
        turn = np.radians(np.linspace(5, np.interp(number, [0, 10], [140, 128]), 44))
        for side in (-1, 1):
            y = start + drop * (1 - np.cos(turn)) / 2 - 0.03 * np.sin(np.minimum(2 * turn, np.pi))
            y = y + 0.13 * np.maximum(turn - 1.3, 0) ** 1.5
            y = y + rng.normal(0, 0.004) + rng.normal(0, 0.004) * turn
            reach = np.interp(y, edge[:, 1], np.maximum.accumulate(edge[:, 0]))
            curve = np.stack([side * (0.05 + (reach - 0.04) * np.sin(turn)), y], axis=1)
            width = patient.rib_width * np.interp(turn, [0, 0.5, 1.6, 2.4], [0.7, 0.95, 0.75, 1.2])
            split = int(np.searchsorted(turn, np.pi / 2)) + 1
            _bone(back, frame, curve[:split], width[:split], 125, int(rng.integers(180, 225)))
            if number < 8:
                _bone(front, frame, curve[split - 2 :], width[split - 2 :], 120, int(rng.integers(150, 180)))
    return back, front


def _shoulder_bones(patient: InventedPatient, frame: Frame, pose: Pose, rng: np.random.Generator) -> np.ndarray:
    """Layer of clavicles, scapulae and humeri."""
    layer = np.zeros((frame.n, frame.n), np.uint8)
    c, s = patient.clavicle, patient.shoulder
    for side, a in zip((-1, 1), pose.arms, strict=True):
        i = rng.uniform(-0.05, 0.05) if pose.view == "PA" else rng.uniform(0.06, 0.2)
        place = (side, 1.0)
        lift = (0.0, s + rng.normal(0, 0.015))
        blade = [(1.0, 0.04), (0.97 - i, 0.1), (0.93 - i, 0.25), (0.95 - i, 0.45), (1.02 - i, 0.6)]
        blade += [(1.1 - i, 0.52), (1.16 - i, 0.36), (1.24, 0.22), (1.25, 0.1), (1.12, 0.06), (1.0, 0.04)]
        outline = smooth_curve(blade) * place + lift
        paint(layer, frame, outline, 38)
        stroke(layer, frame, outline, 65, 5.0)
        thick_edge = smooth_curve([(1.04 - i, 0.58), (1.14 - i, 0.42), (1.22, 0.24)]) * place + lift
        stroke(layer, frame, thick_edge, 95, 9.0)
        spine = smooth_curve([(0.94 - i, 0.13), (1.1, 0.06), (1.28, -0.02), (1.4, -0.0)]) * place + lift
        _bone(layer, frame, spine, np.linspace(0.02, 0.055, len(spine)), 75, 115)
        head = ellipse((side * 1.39, 0.115 + lift[1]), (0.15, 0.11))
        paint(layer, frame, head, 105)
        stroke(layer, frame, head, 140, 3.0, closed=True)
        shaft = [(1.43, 0.17), (1.5 + 0.6 * a, 0.42), (1.58 + 1.3 * a, 0.8), (1.65 + 2 * a, 1.5)]
        shaft = smooth_curve(shaft) * place + lift
        _bone(layer, frame, shaft, np.linspace(0.13, 0.085, len(shaft)), 95, 165)
        collar = [(0.1, 0.17 + c / 2), (0.26, 0.13 + c / 2), (0.48, 0.08 + 0.6 * c), (0.75, 0.0 + 0.5 * c)]
        collar += [(1.05, -0.06 + s), (1.33, -0.05 + s)]
        curve = smooth_curve(collar) * place + (0.0, rng.normal(0, 0.012))
        along = np.linspace(0, 1, len(curve))
        width = np.interp(along, [0, 0.12, 0.5, 0.93, 1], [0.066, 0.046, 0.037, 0.05, 0.02])
        _bone(layer, frame, curve, width, 140, 225)
    return layer


def _spine(patient: InventedPatient, frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Layer of the vertebral column: bodies, end plates, pedicles, transverse and spinous processes."""
    layer = np.zeros((frame.n, frame.n), np.uint8)
    y = -0.9
    while y < 1.9:
        x = 2 * patient.scoliosis * np.sin(3.5 * y)
        half = np.interp(y, [-0.5, 0.1, 1.0, 1.7], [0.085, 0.095, 0.115, 0.135])
        size = np.interp(y, [-0.5, 0.1, 1.0, 1.7], [0.058, 0.074, 0.09, 0.105])
        box = [(-1, 0.05), (-0.9, 0.5), (-1, 0.93), (1, 0.93), (0.9, 0.5), (1, 0.05)]
        body = np.asarray(box) * (half, size) + (x, y)
        for side in (-1, 1):
            process = np.asarray([(0.9 * half, 0.35 * size), (half + 0.07, 0.25 * size)]) * (side, 1)
            stroke(layer, frame, process + np.asarray((x, y)), 75, 11)
        paint(layer, frame, body, 150)
        stroke(layer, frame, body[2:4], 205, 3.5)
        stroke(layer, frame, body[[5, 0]], 205, 3.5)
        for side in (-1, 1):
            pedicle = ellipse((x + side * half * 0.62, y + 0.4 * size), (0.021, 0.019))
            stroke(layer, frame, pedicle, 190, 2.5, closed=True)
        paint(layer, frame, ellipse((x + rng.normal(0, 0.004), y + 0.75 * size), (0.014, 0.024)), 205)
        y += size
    return layer


def bones(patient: InventedPatient, frame: Frame, pose: Pose, rng: np.random.Generator) -> np.ndarray:
    """All bones as float32 thickness (n, n)."""
    back, front = _ribs(patient, frame, rng)
    shoulders, spine = _shoulder_bones(patient, frame, pose, rng), _spine(patient, frame, rng)
    ribs = cv2.addWeighted(back, 0.10, front, 0.06, 0, dtype=cv2.CV_32F)
    others = cv2.addWeighted(shoulders, 0.17, spine, 0.13, 0, dtype=cv2.CV_32F)
    ribs *= 1 - 0.5 * _soft(frame, mediastinum_outline(patient, 1.0), 4)
    hardness = 1.1 - 0.004 * max(patient.age - 30, 0)
    return blur((ribs + others) * np.float32(hardness / 255), frame, 1.3)


def airways(frame: Frame) -> np.ndarray:
    """Trachea and main bronchi as float32 thickness to take away (n, n)."""
    layer = np.zeros((frame.n, frame.n), np.uint8)
    stroke(layer, frame, smooth_curve([(-0.02, 0.33), (-0.09, 0.4), (-0.17, 0.48)]), 140, 22)
    stroke(layer, frame, smooth_curve([(-0.01, 0.33), (0.09, 0.4), (0.2, 0.45)]), 120, 19)
    stroke(layer, frame, smooth_curve([(0.0, -0.6), (-0.005, -0.1), (-0.02, 0.2), (-0.015, 0.33)]), 255, 36)
    return blur(layer, frame, 5).astype(np.float32) * (0.18 / 255)
