// Heat maps and thumbnails. Nothing here knows the page.
"use strict";

const COLOURS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis
const LARGEST = 1024; // side of a heat map; of a larger picture every second pixel is shown, or every third
const THUMBNAIL = 112; // longer side

// Red, green and blue of a probability.
function colour(value) {
  const place = value * (COLOURS.length - 1);
  const low = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[low].map((part, i) => Math.round(part + (COLOURS[low + 1][i] - part) * (place - low)));
}

// Draws the probabilities of levels on a canvas, small ones transparent.
function drawHeat(canvas, levels, width, height, thresholds) {
  const table = new Uint32Array(256);
  for (let level = 1; level < 256; level += 1) {
    const value = thresholds[Math.min(level, thresholds.length) - 1];
    const [red, green, blue] = colour(value);
    table[level] = ((Math.min(1, value * 3) ** 1.5 * 130) << 24) | (blue << 16) | (green << 8) | red;
  }
  const every = Math.ceil(Math.max(width, height) / LARGEST);
  canvas.width = Math.ceil(width / every);
  canvas.height = Math.ceil(height / every);
  const pen = canvas.getContext("2d");
  const picture = pen.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(picture.data.buffer);
  for (let y = 0, i = 0; y < canvas.height; y += 1)
    for (let x = 0; x < canvas.width; x += 1, i += 1) pixels[i] = table[levels[y * every * width + x * every]];
  pen.putImageData(picture, 0, 0);
}

// The address of a small picture of a PNG's bytes with its region filled; mask: bytes of 0 and 1, or null.
async function thumbnail(image, width, height, mask) {
  const scale = THUMBNAIL / Math.max(width, height);
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  const picture = await createImageBitmap(new Blob([image], { type: "image/png" }));
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  if (mask) {
    pen.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0);
    pen.fillStyle = "rgb(230 159 0 / .6)";
    pen.fill(new Path2D(outline(mask, width, height)), "evenodd");
  }
  const file = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.8 });
  return new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(file);
  });
}
