// An image with labels and marks over it, which can be zoomed, moved, pointed at and drawn on. It knows no server.

export const NONE = 255;  // no label, in a label map
const MOST_ZOOM = 40, A_DRAG = 6, NEAR = 10;  // screen pixels: of one image pixel, that a press is a drag, that a corner is met
const ROUND = 2 * Math.PI;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
export const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

export class View {
  // An image point p is at p * scale + (x, y) on the canvas, in CSS pixels.
  scale = 1;
  x = 0;
  y = 0;
  width = 1;  // of the image
  height = 1;
  photo = null;
  labels = null;  // class ids, row by row
  colors = new Map();  // of the classes that are shown, [r, g, b]
  opacity = 0.5;
  marked = true;
  worth = [];  // [x, y, score] of pixels most worth a click
  taught = [];  // [x, y, class, not] of those clicked
  line = [];  // of a stroke or a polygon that is being drawn
  shape = "point";  // what a press makes: "point", "stroke" or "polygon"
  radius = 8;  // of a stroke, in image pixels
  ink = [255, 255, 255];
  hover = null;  // where the mouse is
  cross = null;  // where the keyboard is
  #overlay = document.createElement("canvas");
  #asked = false;
  #fitted = true;  // whether the whole image is in view, and stays so

  /** `on` has what is to be done: `point(p)` at a click, `stroke(points)` after one, `hover()` when the mouse moves. */
  constructor(canvas, on) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    new ResizeObserver(() => this.#fitted ? this.fit() : this.zoom(1)).observe(canvas);
    listen(this, on);
  }

  /** Another image, not read yet. */
  empty({width, height}) {
    Object.assign(this, {width, height, photo: null, labels: null, worth: [], taught: [], line: [], cross: null});
    this.fit();
  }

  get room() { return [this.canvas.clientWidth, this.canvas.clientHeight]; }
  get whole() { return Math.min(this.room[0] / this.width, this.room[1] / this.height); }
  toImage([x, y]) { return [(x - this.x) / this.scale, (y - this.y) / this.scale]; }
  toScreen([x, y]) { return [x * this.scale + this.x, y * this.scale + this.y]; }
  inside([x, y]) { return x >= 0 && y >= 0 && x < this.width && y < this.height; }
  classAt([x, y]) {
    return this.labels && this.inside([x, y]) ? this.labels[Math.floor(y) * this.width + Math.floor(x)] : NONE;
  }
  /** How far apart two image points are on the screen. */
  apart(a, b) { return Math.hypot(a[0] - b[0], a[1] - b[1]) * this.scale; }

  fit() {
    this.scale = this.whole;
    this.#fitted = true;
    this.place(0, 0);
  }
  place(x, y) {  // a small image stands in the middle, a large one never leaves the view
    const along = (at, length, room) => length <= room ? (room - length) / 2 : clamp(at, room - length, 0);
    this.x = along(x, this.width * this.scale, this.room[0]);
    this.y = along(y, this.height * this.scale, this.room[1]);
    this.draw();
  }
  zoom(factor, at = this.room.map(side => side / 2)) {
    const [x, y] = this.toImage(at);
    this.scale = clamp(this.scale * factor, this.whole, Math.max(MOST_ZOOM, this.whole));
    this.#fitted = this.scale <= this.whole;
    this.place(at[0] - x * this.scale, at[1] - y * this.scale);
  }
  reveal(point) {
    const at = this.toScreen(point);
    if (at.some((value, i) => value < 20 || value > this.room[i] - 20)) {
      this.place(...at.map((value, i) => [this.x, this.y][i] + this.room[i] / 2 - value));
    }
  }

  /** The overlay from the label map: one look-up a pixel; where two classes meet, a dark line. */
  colour() {
    if (!this.labels) return;
    const {labels, width, height} = this, fill = new Uint32Array(256), edge = new Uint32Array(256);
    const packed = ([r, g, b], alpha) => (alpha << 24 | b << 16 | g << 8 | r) >>> 0;
    for (const [id, color] of this.colors) {
      fill[id] = packed(color, 225);
      edge[id] = packed(color.map(part => part / 2), 255);
    }
    const pixels = new Uint32Array(width * height);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const meets = (x + 1 < width && labels[i] !== labels[i + 1]) || (y + 1 < height && labels[i] !== labels[i + width]);
        pixels[i] = (meets ? edge : fill)[labels[i]];
      }
    }
    Object.assign(this.#overlay, {width, height});
    const image = new ImageData(new Uint8ClampedArray(pixels.buffer), width, height);
    this.#overlay.getContext("2d").putImageData(image, 0, 0);
    this.draw();
  }

  draw() {
    if (!this.#asked) requestAnimationFrame(() => this.#paint());
    this.#asked = true;
  }
  #paint() {
    this.#asked = false;
    const {pen, canvas} = this, ratio = devicePixelRatio || 1, sides = this.room.map(side => Math.round(side * ratio));
    if (canvas.width !== sides[0] || canvas.height !== sides[1]) [canvas.width, canvas.height] = sides;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, ...this.room);
    if (!this.photo) return;
    const box = [this.x, this.y, this.width * this.scale, this.height * this.scale];
    pen.imageSmoothingEnabled = this.scale * ratio < 3;  // enlarged, pixels are to be seen as such
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.photo, ...box);
    if (this.labels) {
      pen.globalAlpha = this.opacity;
      pen.drawImage(this.#overlay, ...box);
      pen.globalAlpha = 1;
    }
    if (this.marked) {
      this.worth.forEach(point => this.#ring(point, 10));
      this.taught.forEach(click => this.#dot(...click));
    }
    if (this.line.length) this.#line();
    const at = this.cross ?? this.hover;
    if (this.shape === "stroke" && at) this.#ring(at, Math.max(2, this.radius * this.scale));
    if (this.cross) this.#cross();
  }

  // Marks have a dark and a light line, to be seen on any photo.
  #twice(path, inks = ["#000", "#fff"], thick = 2) {
    for (const [width, ink] of [[thick + 2.5, inks[0]], [thick, inks[1]]]) {
      this.pen.beginPath();
      path(this.pen);
      [this.pen.lineWidth, this.pen.strokeStyle] = [width, ink];
      this.pen.stroke();
    }
  }
  #middle([x, y]) { return this.toScreen([Math.floor(x) + 0.5, Math.floor(y) + 0.5]); }
  #ring(point, radius) {
    this.#twice(pen => pen.arc(...this.#middle(point), radius, 0, ROUND));
  }
  #dot(x, y, id, not) {
    const [left, top] = this.#middle([x, y]), {pen} = this;
    pen.beginPath();
    pen.arc(left, top, 6, 0, ROUND);
    pen.fillStyle = css(this.colors.get(id) ?? [128, 128, 128]);
    pen.fill();
    this.#ring([x, y], 6);
    if (not) {
      this.#twice(() => [[-8, 8], [8, -8]].forEach(([from, to]) => {
        pen.moveTo(left - 8, top + from);
        pen.lineTo(left + 8, top + to);
      }));
    }
  }
  #line() {
    const {pen} = this, points = this.line.map(point => this.toScreen(point));
    const path = more => {
      pen.moveTo(...points[0]);
      [...points, ...more].forEach(point => pen.lineTo(...point));
    };
    [pen.lineCap, pen.lineJoin] = ["round", "round"];
    if (this.shape === "polygon") {
      this.#twice(() => path(this.hover ? [this.toScreen(this.hover)] : []));
      points.forEach(point => this.#twice(() => pen.arc(...point, 3, 0, ROUND)));
      return;
    }
    pen.beginPath();
    path([[points[0][0] + 0.01, points[0][1]]].slice(points.length - 1));
    [pen.lineWidth, pen.strokeStyle, pen.globalAlpha] = [2 * this.radius * this.scale, css(this.ink), 0.6];
    pen.stroke();
    pen.globalAlpha = 1;
  }
  #cross() {
    const [x, y] = this.#middle(this.cross);
    this.#twice(pen => [[1, 0], [-1, 0], [0, 1], [0, -1]].forEach(([dx, dy]) => {
      pen.moveTo(x + 4 * dx, y + 4 * dy);
      pen.lineTo(x + 16 * dx, y + 16 * dy);
    }), ["#000", "#ffd84d"]);
  }

  /** Another corner of the polygon; true where the first is met again, which closes it. */
  corner(point) {
    const {line} = this;
    if (line.length > 2 && this.apart(line[0], point) < NEAR) return true;
    if (!line.length || this.apart(line.at(-1), point) > 3) line.push(point);  // a double click is one corner
    this.draw();
    return false;
  }
}

/** Mouse, pen and fingers: a press, a drag (moves the image, or draws), two fingers (zoom and move), the wheel. */
function listen(view, on) {
  const {canvas} = view, down = new Map();
  let gesture = null;  // {kind: "press" | "move" | "draw" | "pinch", from, …}
  let space = false;
  const at = event => [event.offsetX, event.offsetY];
  const two = () => {
    const [[ax, ay], [bx, by]] = [...down.values()];
    return {middle: [(ax + bx) / 2, (ay + by) / 2], far: Math.hypot(ax - bx, ay - by)};
  };
  const release = () => {
    gesture = null;
    canvas.classList.remove("moving");
  };

  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({preventScroll: true});
    down.set(event.pointerId, at(event));
    view.cross = null;
    if (down.size === 2) {
      if (view.shape === "stroke") view.line = [];
      gesture = {kind: "pinch", ...two()};
    } else if (down.size === 1) {
      const moves = space || event.button === 1 || event.button === 2;
      const draws = view.shape === "stroke" && !moves;
      gesture = {kind: draws ? "draw" : moves ? "move" : "press", from: at(event), start: [view.x, view.y]};
      if (draws) view.line = [view.toImage(at(event))];
    }
    event.preventDefault();
    view.draw();
  });
  canvas.addEventListener("pointermove", event => {
    const point = at(event);
    view.hover = event.pointerType === "touch" ? null : view.toImage(point);
    on.hover();
    if (down.has(event.pointerId)) down.set(event.pointerId, point);
    const moved = gesture?.from && point.map((value, i) => value - gesture.from[i]);
    if (gesture?.kind === "press" && Math.hypot(...moved) > A_DRAG) gesture.kind = "move";
    if (gesture?.kind === "move") {
      canvas.classList.add("moving");
      view.place(...gesture.start.map((value, i) => value + moved[i]));
    } else if (gesture?.kind === "draw") {
      const next = view.toImage(point);
      if (view.apart(view.line.at(-1), next) >= 2) view.line.push(next);
    } else if (gesture?.kind === "pinch" && down.size === 2) {
      const {middle, far} = two();
      view.zoom(far / gesture.far, gesture.middle);
      view.place(...[view.x, view.y].map((value, i) => value + middle[i] - gesture.middle[i]));
      Object.assign(gesture, {middle, far});
    }
    view.draw();
  });
  canvas.addEventListener("pointerup", event => {
    down.delete(event.pointerId);
    const {kind} = gesture ?? {};
    if (kind === "press") on.point(view.toImage(at(event)));
    if (kind === "draw") {
      const points = view.line.filter(point => view.inside(point));
      view.line = [];
      if (points.length) on.stroke(points);
    }
    if (!down.size) release();
    view.draw();
  });
  canvas.addEventListener("pointercancel", event => {
    down.delete(event.pointerId);
    if (view.shape === "stroke") view.line = [];
    release();
    view.draw();
  });
  canvas.addEventListener("pointerleave", () => {
    view.hover = null;
    on.hover();
    view.draw();
  });
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    const step = event.deltaMode ? 20 * event.deltaY : event.deltaY;  // lines or pixels
    view.zoom(Math.exp(-clamp(step, -240, 240) * (event.ctrlKey ? 0.01 : 0.0018)), at(event));
  }, {passive: false});
  canvas.addEventListener("contextmenu", event => event.preventDefault());
  addEventListener("keydown", event => { space ||= event.key === " " && document.activeElement === canvas; });
  addEventListener("keyup", event => { space &&= event.key !== " "; });
}
