// From levels to the outlined region, as `jaxpneumo predict` makes it. Nothing here touches the page.
//
// A level is a byte for each pixel: how many of the slider's thresholds, in ascending order, its probability reaches.
// So "probability of at least the k-th threshold" is "level of at least k", without rounding.
"use strict";

const NATIVE_AREA = 1024 * 1024; // areas of rules are in pixels of a 1024x1024 image

// How many pixels reach each level, 0 to 255.
function countReached(levels) {
  const reached = new Uint32Array(257);
  for (const level of levels) reached[level] += 1;
  for (let level = 254; level >= 0; level -= 1) reached[level] += reached[level + 1];
  return reached;
}

// The outlined region at a level: {mask: bytes of 0 and 1, area: its pixels}. Without a region the mask is null.
// rules: {removal, rule, topLevel, topArea, emptied}; those of the run, and whether its gate or classifier says no.
function region(levels, width, height, level, rules, reached) {
  const none = { mask: null, area: 0 };
  const pixels = (area) => (area * height * width) / NATIVE_AREA;
  const area = reached[level];
  if (rules.emptied || area === 0 || area < Math.ceil(pixels(rules.removal))) return none;
  if (rules.topLevel !== null && reached[rules.topLevel] < Math.ceil(pixels(rules.topArea))) return none;
  const mask = new Uint8Array(levels.length);
  for (let i = 0; i < levels.length; i += 1) mask[i] = levels[i] >= level ? 1 : 0;
  if (rules.rule !== "component" || rules.removal === 0) return { mask, area };
  const kept = dropSmall(mask, width, height, area, pixels(rules.removal));
  return kept ? { mask, area: kept } : none;
}

// Empties the components of a mask, by eight neighbours, that have fewer than `smallest` of its `area` pixels.
// Returns how many pixels are left.
function dropSmall(mask, width, height, area, smallest) {
  const members = new Int32Array(area);
  let kept = 0;
  for (let first = 0; first < mask.length; first += 1) {
    if (mask[first] !== 1) continue;
    let count = 1;
    members[0] = first;
    mask[first] = 2; // seen
    for (let done = 0; done < count; done += 1) {
      const x = members[done] % width;
      const y = (members[done] - x) / width;
      for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, height - 1); v += 1) {
        for (let u = Math.max(x - 1, 0); u <= Math.min(x + 1, width - 1); u += 1) {
          const i = v * width + u;
          if (mask[i] !== 1) continue;
          mask[i] = 2;
          members[count] = i;
          count += 1;
        }
      }
    }
    if (count < smallest) for (let i = 0; i < count; i += 1) mask[members[i]] = 0;
    else kept += count;
  }
  for (let i = 0; i < mask.length; i += 1) if (mask[i] === 2) mask[i] = 1;
  return kept;
}

// The borders of a mask along the edges of its pixels, as the text of an SVG path. Holes are loops of their own.
function outline(mask, width, height) {
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] === 1;
  const followed = new Uint8Array(mask.length); // pixels whose upper edge is drawn already
  const parts = [];
  for (let start = 0; start < mask.length; start += 1) {
    const left = start % width;
    const top = (start - left) / width;
    if (mask[start] !== 1 || followed[start] || inside(left, top - 1)) continue;
    // Walks clockwise, with the region on the right hand: (dx, dy) is the direction.
    let [x, y, dx, dy] = [left, top, 1, 0];
    const path = [`M${x} ${y}`];
    do {
      if (dx === 1) followed[y * width + x] = 1;
      x += dx;
      y += dy;
      // The two pixels ahead, to the left and to the right of the way.
      const [ax, ay] = [x + (dx + dy - 1) / 2, y + (dy - dx - 1) / 2];
      const [bx, by] = [x + (dx - dy - 1) / 2, y + (dy + dx - 1) / 2];
      if (inside(ax, ay)) [dx, dy] = [dy, -dx];
      else if (inside(bx, by)) continue;
      else [dx, dy] = [-dy, dx];
      path.push(dy === 0 ? `V${y}` : `H${x}`);
    } while (x !== left || y !== top || dx !== 1);
    parts.push(`${path.join("")}Z`);
  }
  return parts.join("");
}
