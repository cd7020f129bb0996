"""How a drawn thorax becomes a radiograph: position, film, noise, devices, letters.

Thickness (see `anatomy`) is turned to grey by the S-shaped curve of a film; a pneumothorax takes grey away, since
its margin against the lung must be the same in every picture. Images are (n, n), coordinates those of the thorax.
"""

import cv2
import numpy as np

from jaxpneumo.synthetic import anatomy
from jaxpneumo.synthetic.anatomy import Frame, InventedPatient, Pose


def view_position(seed: int) -> str:
    """View of the picture with this seed: "PA" (standing, in the department) or "AP" (lying, at the bedside)."""
    return "PA" if np.random.default_rng([seed, 2]).random() < 0.6 else "AP"


def position(patient: InventedPatient, seed: int, n: int) -> tuple[Frame, Pose]:
    """Where the thorax lies in the (n, n) picture with this seed, and how the patient stands or lies."""
    rng, view = np.random.default_rng([seed, 3]), view_position(seed)
    standing = view == "PA"
    width = n * patient.width * rng.uniform(0.305, 0.375)
    height = n * patient.height * (rng.uniform(0.48, 0.60) if standing else rng.uniform(0.42, 0.55))
    top = rng.uniform(0.09, 0.17) if standing else rng.uniform(0.1, 0.2)
    frame = Frame(n, 0.5 + rng.normal(0, 0.02), top, width, height, rng.normal(0, 0.025))
    heart = rng.uniform(0.9, 1.02) if standing else rng.uniform(1.0, 1.2)
    arms = rng.uniform(0.05, 0.5, 2) if standing else rng.uniform(-0.04, 0.15, 2)
    return frame, Pose(view, heart, (float(arms[0]), float(arms[1])))


def expose(
    patient: InventedPatient, frame: Frame, pose: Pose, region: np.ndarray, line: np.ndarray, seed: int
) -> np.ndarray:
    """Draws everything but the pneumothorax's shape.

    Args:
      patient: who is drawn.
      frame: where; its n is the side length of the picture.
      pose: how; with `frame` as from `position`.
      region: uint8 (n, n), 1 where the pneumothorax is, all 0 for none.
      line: float32 (n, n), 0..1, the pleural line.
      seed: of this picture; the same seed with another region gives the same picture but for the pneumothorax.

    Returns:
      uint8 (n, n), dark air.
    """
    n, view = frame.n, pose.view
    rng, grain = np.random.default_rng([seed, 4]), np.random.default_rng([seed, 5])
    half = frame.scaled(n // 2)
    lungs = np.asarray(sum(anatomy.lung_fields(patient, half, pose.heart))) * np.uint8(255)
    lungs = cv2.resize(anatomy.blur(lungs, half, 6), (n, n)).astype(np.float32) / 255
    gone = anatomy.blur(region.astype(np.float32), frame, 2)
    aerated = lungs * (1 - gone)
    haze = _haze(n, rng)

    tissue = cv2.resize(anatomy.soft_tissue(patient, half, pose, rng), (n, n))
    tissue += anatomy.bones(patient, frame, pose, rng) * (1 + 0.2 * haze) - anatomy.airways(frame)
    markings = _vessels(frame, rng) * rng.uniform(0.8, 1.25)
    markings += _texture(n, grain) * rng.uniform(0.6, 1.2)
    tissue += aerated * (markings + haze * rng.uniform(0.0, 0.03)) + 0.012 * haze
    if rng.random() < 0.25:
        tissue += aerated * _opacity(frame, rng) * (1 + 0.5 * haze)
    # What is left of a collapsed lung is denser.
    tissue += aerated * min(0.1 * float(region.sum()) / (0.5 * float(lungs.sum()) + 1), 0.1)
    tissue += _skin_folds(frame, rng) + _devices(frame, view, rng)

    grey = _film(tissue, view, rng)
    grey -= gone * rng.uniform(30, 46)
    grey += line * rng.uniform(14, 32)
    ramp = np.linspace(-1, 1, n, dtype=np.float32)
    grey *= (1 + rng.normal(0, 0.03) * ramp)[:, None] * (1 + rng.normal(0, 0.03) * ramp)[None, :]
    grey = anatomy.blur(grey, frame, rng.uniform(0.4, 0.9))
    grey += grain.standard_normal((n, n), np.float32) * (0.6 + grey * 0.004) * rng.uniform(0.9, 2.6)
    if rng.random() < 0.25:
        grey *= _collimator(frame, rng)
    _letters(grey, view, rng)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _film(tissue: np.ndarray, view: str, rng: np.random.Generator) -> np.ndarray:
    """Thickness to grey: steep and bright in the department, flat and grey at the bedside."""
    if view == "PA":
        dark, bright = rng.uniform(2, 14), rng.uniform(238, 254)
        centre, width = rng.uniform(0.38, 0.48), rng.uniform(0.16, 0.2)
    else:
        dark, bright = rng.uniform(8, 30), rng.uniform(175, 225)
        centre, width = rng.uniform(0.4, 0.5), rng.uniform(0.2, 0.28)
    floor = 1 / (1 + np.exp(centre / width))
    curve = (1 / (1 + np.exp((centre - tissue) / width)) - floor) / (1 - floor)
    return dark + (bright - dark) * np.maximum(0.86 * curve + 0.12 * tissue, 0)


def _vessels(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Lung vessels as float32 thickness (n, n): trees that leave both hila, fork, thin out and fade."""
    layer = np.zeros((frame.n, frame.n), np.uint8)
    radii, paths = [], []
    for side in (-1, 1):
        count = rng.integers(9, 13)
        angle = np.linspace(-1.45, 1.5, count) + rng.normal(0, 0.16, count)
        start = np.stack([np.full(count, 0.19), 0.45 + 0.1 * np.sin(angle) - 0.015 * side], axis=1)
        radius = rng.uniform(4, 11, count)
        for generation in range(6):
            steps = [start]
            length = rng.uniform(0.02, 0.042, len(start)) * (1.1 - 0.06 * generation)
            for _ in range(4):
                angle = angle + rng.normal(0, 0.16, len(angle))
                step = np.stack([np.cos(angle), 0.75 * np.sin(angle)], axis=1)
                steps.append(steps[-1] + length[:, None] * step)
            radii.append(radius)
            paths.append(np.stack(steps, axis=1) * (side, 1.0))
            turn = rng.uniform(0.1, 0.5, (len(angle), 2)) * (-1, 1)
            start, angle = np.repeat(steps[-1], 2, axis=0), (angle[:, None] + turn).ravel()
            radius = np.repeat(radius, 2) * rng.uniform(0.45, 0.85, len(angle))
            inside = (start[:, 0] > 0.1) & (start[:, 0] < 1.0) & (start[:, 1] < 1.15)
            keep = inside & (rng.random(len(angle)) < 0.92)
            start, angle, radius = start[keep], angle[keep], radius[keep]
    # The thick ones last, over the thin ones.
    thickness, curves = np.rint(2 * np.concatenate(radii)) / 2, np.concatenate(paths)
    for radius in np.unique(thickness):
        value = int(np.clip(60 + 17 * radius, 0, 230))
        anatomy.stroke(layer, frame, curves[thickness == radius], value, radius)
    return anatomy.blur(layer, frame, 1.1).astype(np.float32) * (0.13 / 255)


def _texture(n: int, rng: np.random.Generator) -> np.ndarray:
    """Fine lung markings too small to draw one by one."""
    noise = rng.standard_normal((n // 2, n // 2), np.float32)
    fine = cv2.GaussianBlur(noise, (0, 0), 1.6 * n / 1024) - cv2.GaussianBlur(noise, (0, 0), 4 * n / 1024)
    return cv2.resize(fine, (n, n)) * (0.09 * n / 1024)


def _haze(n: int, rng: np.random.Generator) -> np.ndarray:
    """Patchy density at three scales, mostly -2..2."""
    total = np.zeros((n // 4, n // 4), np.float32)
    for cells, weight in ((6, 1.0), (20, 0.5), (60, 0.3)):
        patches = rng.standard_normal((cells, cells), np.float32) * weight
        total += cv2.resize(patches, (n // 4, n // 4), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(total, (n, n), interpolation=cv2.INTER_LINEAR)


def _opacity(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """A soft density in one lung: pneumonia or the like, so that not only healthy lungs are negative."""
    place = np.asarray([(rng.choice([-1, 1]) * rng.uniform(0.4, 0.7), rng.uniform(0.3, 1.0))])
    radius = rng.uniform(0.12, 0.35) * frame.width
    rows = np.arange(frame.n)
    across, down = (np.exp(-((rows - at) ** 2) / (2 * radius**2)) for at in frame.pixels(place)[0])
    return np.outer(down, across).astype(np.float32) * rng.uniform(0.06, 0.25)


def _skin_folds(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Folds with an edge that may be taken for a pleural line, but with lung markings on both sides of it."""
    small = frame.scaled(frame.n // 4)
    total = np.zeros((small.n, small.n), np.float32)
    for _ in range(rng.choice([0, 1, 2], p=[0.5, 0.35, 0.15])):
        side, x, y = rng.choice([-1, 1]), rng.uniform(0.45, 0.85), rng.uniform(0.1, 0.5)
        lean, reach = rng.uniform(-0.25, 0.35), rng.uniform(0.12, 0.3)
        edge = [(x - lean / 3, y - 0.3), (x, y), (x + lean / 3, y + 0.25), (x + lean / 2, y + 0.6)]
        edge = anatomy.smooth_curve(edge)
        sheet = anatomy.fill(small, np.concatenate([edge, edge[::-1] + np.asarray((reach, 0))]) * (side, 1))
        fade = cv2.GaussianBlur(sheet, (0, 0), 0.12 * small.width).astype(np.float32) / 255
        total += (sheet > 127) * fade * rng.uniform(0.03, 0.09)
    return cv2.resize(cv2.GaussianBlur(total, (0, 0), 0.7), (frame.n, frame.n))


def _devices(frame: Frame, view: str, rng: np.random.Generator) -> np.ndarray:
    """Cables, lines and tubes as thickness, float32 (n, n): many at the bedside, few in the department.

    Chest tubes lie in lungs with and without pneumothorax, so that none gives the answer away.
    """
    layer = np.zeros((frame.n, frame.n), np.uint8)
    cables, line, airway, stomach, drain = rng.random(5) < (
        (0.7, 0.45, 0.3, 0.35, 0.22) if view == "AP" else (0.1, 0.06, 0.0, 0.02, 0.05)
    )
    if cables:
        for _ in range(rng.integers(2, 5)):
            x, y, side = rng.uniform(-0.75, 0.75), rng.uniform(0.05, 1.0), rng.choice([-1, 1])
            way = [(x, y), (x + 0.25 * side, y - rng.uniform(0, 0.2))]
            way += [(x + 0.7 * side, y + rng.uniform(-0.4, 0.3)), (1.7 * side, rng.uniform(-0.2, 1.3))]
            way += [(2.2 * side, rng.uniform(-0.3, 1.5))]
            anatomy.stroke(layer, frame, anatomy.smooth_curve(way), 105, 3.5)
            anatomy.stroke(layer, frame, anatomy.ellipse((x, y), (0.038, 0.026)), 170, 4, closed=True)
            anatomy.stroke(layer, frame, np.asarray([(x - 0.004, y), (x + 0.006, y)]), 245, 9)
    if line:
        side = rng.choice([-1, 1], p=[0.7, 0.3])
        way = [(side * 0.6, -0.12), (side * 0.35, 0.06), (side * 0.14, 0.14), (-0.1, 0.3)]
        way += [(-0.12, rng.uniform(0.4, 0.6))]
        anatomy.stroke(layer, frame, anatomy.smooth_curve(way), 135, 5)
    if airway:
        _tube(layer, frame, [(0.0, -0.8), (-0.01, -0.2), (-0.02, rng.uniform(0.12, 0.26))], 20, 90)
    if stomach:
        way = [(0.03, -0.8), (0.03, 0.2), (0.03, 0.7), (0.1, 1.08), (rng.uniform(0.25, 0.5), 1.25)]
        _tube(layer, frame, way, 9, 80)
    if drain:
        side, tip = rng.choice([-1, 1]), (rng.uniform(0.3, 0.5), rng.uniform(0.08, 0.3))
        way = np.asarray([(1.35, 0.95), (1.0, 0.8), (0.75, 0.5), (0.55, 0.25), tip])
        _tube(layer, frame, way * (side, 1), 17, 120)
    return anatomy.blur(layer, frame, 1.0).astype(np.float32) * (0.3 / 255)


def _tube(layer: np.ndarray, frame: Frame, points: np.ndarray | list, width: float, value: int) -> None:
    """A hollow tube with bright walls: drawn full, then its middle fainter."""
    curve = anatomy.smooth_curve(points)
    anatomy.stroke(layer, frame, curve, value + 60, width)
    anatomy.stroke(layer, frame, curve, value // 2, width - 5)


def _collimator(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """1 inside of the collimator's slightly turned opening, 0 outside."""
    n, turn = frame.n, rng.normal(0, 0.02)
    corners = np.asarray([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]) * rng.uniform(0.955, 1.0, 2)
    turned = corners @ np.asarray([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + 0.5
    opening = np.zeros((n, n), np.uint8)
    cv2.fillPoly(opening, [np.rint(turned * n * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return anatomy.blur(opening, frame, 1.2).astype(np.float32) / 255


def _letters(grey: np.ndarray, view: str, rng: np.random.Generator) -> None:
    """The side marker at the patient's left and, at the bedside, words that technologists add; in place."""
    n, unit = len(grey), len(grey) / 1024
    layer = np.zeros((n, n), np.uint8)
    place = (int(rng.uniform(0.86, 0.95) * n), int((rng.uniform(0.03, 0.3) + 0.025) * n))
    thick, plain, serif = max(1, round(4 * unit)), cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX
    if rng.random() < 0.3:
        centre = (place[0] + round(11 * unit), place[1] - round(12 * unit))
        cv2.circle(grey, centre, round(27 * unit), 4.0, -1, cv2.LINE_AA)
        cv2.circle(layer, centre, round(25 * unit), 250, max(1, thick // 2), cv2.LINE_AA)
        cv2.putText(layer, "L", place, plain, 1.05 * unit, 250, max(1, thick - 1), cv2.LINE_AA)
    else:
        bright = int(rng.uniform(170, 250))
        cv2.putText(layer, "L", place, serif, rng.uniform(1.2, 1.9) * unit, bright, thick, cv2.LINE_AA)
        layer = cv2.warpAffine(layer, cv2.getRotationMatrix2D(place, rng.normal(0, 12), 1.0), (n, n))
    if view == "AP" and rng.random() < 0.6:
        words = (int(rng.uniform(0.02, 0.75) * n), int(rng.uniform(0.02, 0.07) * n))
        text = str(rng.choice(["PORTABLE", "AP PORTABLE", "AP SUPINE", "AP"]))
        cv2.putText(layer, text, words, plain, 0.72 * unit, 235, max(1, thick // 2), cv2.LINE_AA)
    np.maximum(grey, layer, out=grey)
