// A person's pictures: read, made small enough to send, and shown with the boxes that were searched.
//
// A PNG that is small enough is sent byte by byte. Everything else is drawn anew as JPEG, upright and without what
// cameras write into their files (the place, the time), so that the pixels here are those that the service counts.

import { make } from "./dom.js";

export const MIB = 2 ** 20; // bytes
export const LONGEST_SIDE = 2048; // pixels; no model reads more
const QUALITY = 0.92;
const SVG = "http://www.w3.org/2000/svg";

/** A picture that cannot be used, in a sentence. */
export class Unusable extends Error {}

/** `{url, width, height, name}` of a file; `url` is a data: URL. Throws `Unusable`. */
export async function readPicture(file, mostMib) {
  const name = file.name || "pasted picture";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Unusable(`${name} is no picture that this browser can read.`);
  }
  try {
    const { width, height } = bitmap;
    const asItIs = file.type === "image/png" && Math.max(width, height) <= LONGEST_SIDE && file.size <= mostMib * MIB;
    const [blob, w, h] = asItIs ? [file, width, height] : await redrawn(bitmap);
    if (blob.size > mostMib * MIB) throw new Unusable(`${name} is over ${mostMib} MiB.`);
    return { url: await dataUrl(blob), width: w, height: h, name };
  } finally {
    bitmap.close();
  }
}

async function redrawn(bitmap) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * scale)), height = Math.max(1, Math.round(bitmap.height * scale));
  const canvas = make("canvas", "");
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "#fff"; // JPEG knows no transparency
  pen.fillRect(0, 0, width, height);
  pen.drawImage(bitmap, 0, 0, width, height);
  const blob = await new Promise((done) => { canvas.toBlob(done, "image/jpeg", QUALITY); });
  if (!blob) throw new Unusable("This browser cannot make the picture small enough.");
  return [blob, width, height];
}

function dataUrl(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => { done(reader.result); });
    reader.addEventListener("error", () => { failed(new Unusable("The picture cannot be read.")); });
    reader.readAsDataURL(blob);
  });
}

const isSmall = ({ width, height }) => Math.max(width, height) < 240;

/** A picture in full. `mark` draws what was searched of it, by the number of the search. */
export class Shown {
  constructor(picture, number, of) {
    this.picture = picture;
    const image = make("img", isSmall(picture) ? "small" : "");
    image.src = picture.url;
    image.alt = of > 1 ? `Picture ${number}` : "The picture";
    [image.width, image.height] = [picture.width, picture.height];
    this._frame = make("div", "frame", image);
    this.node = make("figure", "shown", this._frame, of > 1 ? make("figcaption", "", `Picture ${number}`) : null);
  }
  /** `box`: x0, y0, x1, y1 in pixels. Returns what lights it up and lets it go. */
  mark([x0, y0, x1, y1], search) {
    const box = make("span", "box", make("b", "", String(search)));
    const share = (value, whole) => `${Math.max(0, Math.min(100, (100 * value) / whole))}%`;
    box.style.left = share(x0, this.picture.width);
    box.style.top = share(y0, this.picture.height);
    box.style.width = share(x1 - x0, this.picture.width);
    box.style.height = share(y1 - y0, this.picture.height);
    this._frame.append(box);
    return (lit) => { box.classList.toggle("lit", lit); };
  }
}

/** A part of a picture, or all of it without `box`. */
export function cutOut(picture, box) {
  const [x0, y0, x1, y1] = box || [0, 0, picture.width, picture.height];
  const svg = document.createElementNS(SVG, "svg"), image = document.createElementNS(SVG, "image");
  svg.setAttribute("viewBox", `${x0} ${y0} ${x1 - x0} ${y1 - y0}`);
  svg.setAttribute("class", `cut${isSmall({ width: x1 - x0, height: y1 - y0 }) ? " small" : ""}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", box ? "The part that was searched" : "The whole picture");
  image.setAttribute("href", picture.url);
  image.setAttribute("width", picture.width);
  image.setAttribute("height", picture.height);
  svg.append(image);
  return svg;
}

export const isBox = (box) => Array.isArray(box) && box.length === 4 && box.every(Number.isFinite) &&
  box[2] > box[0] && box[3] > box[1];
