// How a photo becomes the square that the model sees: the arithmetic of run.py and of Pillow.
// Pixels are of three bytes, red, green and blue; boxes are [y1, x1, y2, x2].

const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    const a = -0.5;
    x = Math.abs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
  }],
  lanczos: [3, (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
const UNIT = 2 ** 22; // weights are whole numbers of it

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

// Of every position along an axis made `size` long: the first pixel that it sees, and its weights.
function weightsOf(length, size, filter) {
  const [support, kernel] = FILTERS[filter];
  const scale = length / size, stretch = Math.max(scale, 1);
  return Array.from({ length: size }, (_, position) => {
    const centre = (position + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support * stretch + 0.5));
    const last = Math.min(length, Math.trunc(centre + support * stretch + 0.5));
    const weights = [];
    for (let k = first; k < last; k++) weights.push(kernel((k - centre + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0);
    return [first, weights.map((weight) => {
      const share = sum === 0 ? weight : weight / sum;
      return Math.trunc(share * UNIT + (share < 0 ? -0.5 : 0.5));
    })];
  });
}

// Pixels with their rows, or their columns, resized.
function alongAxis({ width, height, pixels }, size, filter, across) {
  const [before, wide, tall] = across ? [width, size, height] : [height, width, size];
  if (before === size) return { width, height, pixels };
  const result = new Uint8ClampedArray(wide * tall * 3);
  const step = across ? 3 : 3 * width;
  weightsOf(before, size, filter).forEach(([first, weights], position) => {
    for (let line = 0; line < (across ? tall : wide); line++) {
      const source = across ? line * width * 3 + first * 3 : first * step + line * 3;
      const target = across ? (line * wide + position) * 3 : (position * wide + line) * 3;
      for (let colour = 0; colour < 3; colour++) {
        let sum = UNIT / 2;
        for (let k = 0; k < weights.length; k++) {
          sum += weights[k] * pixels[source + k * step + colour];
        }
        result[target + colour] = Math.floor(sum / UNIT);
      }
    }
  });
  return { width: wide, height: tall, pixels: result };
}

// What a photo is resized to, and the corner of what is seen of it.
export function frame(width, height, how) {
  const size = how.size;
  if (!how.center_crop) return { wide: size, tall: size, x: 0, y: 0 };
  const edge = Math.floor(size / how.center_crop), shorter = Math.min(width, height);
  const wide = Math.floor(edge * width / shorter), tall = Math.floor(edge * height / shorter);
  return { wide, tall, x: toEven((wide - size) / 2), y: toEven((tall - size) / 2) };
}

function toEven(number) {
  const low = Math.floor(number);
  return number - low === 0.5 ? low + (low % 2 ? 1 : 0) : Math.round(number);
}

// The square that the model sees of a photo.
export function square(photo, how) {
  const { wide, tall, x, y } = frame(photo.width, photo.height, how);
  const isRibbon = photo.height > Math.max(100 * photo.width, tall);
  const resized = [!isRibbon, isRibbon].reduce(
    (image, across) => alongAxis(image, across ? wide : tall, how.interpolation, across), photo);
  const size = how.size, pixels = new Uint8Array(size * size * 3);
  for (let row = 0; row < size; row++) {
    const start = ((row + y) * wide + x) * 3;
    pixels.set(resized.pixels.subarray(start, start + size * 3), row * size * 3);
  }
  return pixels;
}

// A box of the square in pixels of the photo: all that it touches.
export function boxInPhoto([y1, x1, y2, x2], width, height, how) {
  const { wide, tall, x, y } = frame(width, height, how);
  return [
    Math.floor((y1 + y) * height / tall), Math.floor((x1 + x) * width / wide),
    Math.ceil((y2 + y) * height / tall), Math.ceil((x2 + x) * width / wide),
  ];
}
