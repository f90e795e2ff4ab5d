"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
    const value = row => row.children[column].dataset.value;
    const text = isNaN(value(table.tBodies[0].rows[0]));
    const order = -(head.dataset.order || (text ? -1 : 1));
    table.querySelectorAll("th").forEach(other => delete other.dataset.order);
    head.dataset.order = order;
    const compare = (a, b) => text ? value(a).localeCompare(value(b)) : value(a) - value(b);
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => order * compare(a, b)));
  }));
}

const data = JSON.parse(document.getElementById("data").textContent);
if (data.views.length) {
  const UNLABELLED = 65535, k = data.numberColors.length;
  const canvas = document.getElementById("photo"), answer = document.getElementById("answer");
  const notes = {
    "photo": "",
    "classes": "What each pixel is taken for.",
    "prototypes": "The number of the prototype of the predicted class that takes the pixel, by colour.",
    "margin": "Cosine of the nearest prototype minus that of the runner-up class: dark red is undecided.",
  };
  let view, layer = "photo", place = null;

  const element = (tag, content, attributes) => {
    const node = Object.assign(document.createElement(tag), attributes);
    node.append(...[].concat(content ?? []));
    return node;
  };
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const numbers = text => {  // little-endian, whatever the machine is
    const raw = new DataView(bytes(text).buffer);
    return Uint16Array.from({length: raw.byteLength / 2}, (_, i) => raw.getUint16(2 * i, true));
  };
  const rgb = color => [1, 3, 5].map(i => parseInt(color.slice(i, i + 2), 16));
  const cosine = (levels, i) => view.low + levels[i] * (view.high - view.low) / 255;

  function open(raw) {
    if (!raw.ready) {
      for (const key of ["prototype", "second", "truth"]) raw[key] = numbers(raw[key]);
      for (const key of ["cosine", "second_cosine"]) raw[key] = bytes(raw[key]);
      raw.ready = true;
    }
    view = raw;
    view.image = view.image || element("img", null, {src: view.photo});
    view.image.decode().then(() => {
      canvas.width = view.image.naturalWidth;
      canvas.height = view.image.naturalHeight;
      // The least decided labelled place is the most telling one to begin with.
      choose(view.start ?? (view.start = undecided()));
    });
    press("images", data.views.indexOf(view));
    legend();
  }
  function undecided() {
    let best = 0, least = Infinity;
    view.truth.forEach((truth, i) => {
      const margin = Math.abs(view.cosine[i] - view.second_cosine[i]);
      const right = Math.floor(view.prototype[i] / k) === truth;
      if (truth !== UNLABELLED && !right && margin < least) { least = margin; best = i; }
    });
    return best;
  }
  function press(group, chosen) {
    [...document.getElementById(group).children].forEach((b, i) => b.setAttribute("aria-pressed", i === chosen));
  }
  function color(i) {
    const id = view.prototype[i];
    if (layer === "classes") return [...rgb(data.colors[Math.floor(id / k)]), 160];
    if (layer === "prototypes") return [...rgb(data.numberColors[id % k]), 170];
    const doubt = 1 - Math.min(1, Math.max(0, cosine(view.cosine, i) - cosine(view.second_cosine, i)) / 0.4);
    return [180, 0, 30, 225 * doubt ** 2];
  }
  function draw() {
    const pen = canvas.getContext("2d"), scale = canvas.width / view.width, side = view.cell * scale;
    pen.drawImage(view.image, 0, 0);
    if (layer !== "photo") {
      const rows = view.prototype.length / view.columns;
      const small = element("canvas", null, {width: view.columns, height: rows});
      const picture = new ImageData(view.columns, rows);
      for (let i = 0; i < view.prototype.length; i++) picture.data.set(color(i), 4 * i);
      small.getContext("2d").putImageData(picture, 0, 0);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(small, 0, 0, view.columns * side, rows * side);
    }
    const x = (place % view.columns + 0.5) * side, y = (Math.floor(place / view.columns) + 0.5) * side;
    for (const [width, ink] of [[5, "#000"], [2.5, "#fff"]]) {
      pen.lineWidth = width;
      pen.strokeStyle = ink;
      pen.beginPath();
      pen.arc(x, y, 9, 0, 2 * Math.PI);
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        pen.moveTo(x + 9 * dx, y + 9 * dy);
        pen.lineTo(x + 16 * dx, y + 16 * dy);
      }
      pen.stroke();
    }
  }
  const swatch = color => {
    const node = element("i", null, {className: "swatch"});
    node.style.background = color;
    return node;
  };
  function card(title, id, near) {
    const of = Math.floor(id / k), number = id % k;
    const patches = document.querySelector(`#p${of}-${number} .patches`);
    const dot = swatch(data.numberColors[number]);
    dot.className = "dot";
    const node = element("div", [
      element("small", title),
      element("h3", [swatch(data.colors[of]), data.classes[of], element("small", [dot, `prototype ${number}`])]),
      element("p", `cosine ${near.toFixed(3)} · distance (1 − cosine) ${(1 - near).toFixed(3)}`),
      patches ? patches.cloneNode(true) : element("small", "Its patches are not on this page."),
    ]);
    return node;
  }
  function choose(i) {
    place = i;
    const of = Math.floor(view.prototype[i] / k), truth = view.truth[i];
    const near = cosine(view.cosine, i), next = cosine(view.second_cosine, i);
    const x = (i % view.columns) * view.cell, y = Math.floor(i / view.columns) * view.cell;
    const judged = truth === UNLABELLED ? ["unlabelled"]
      : [swatch(data.colors[truth]), `${data.classes[truth]}: ${truth === of ? "right" : "wrong"}`];
    const verdict = element("div", [
      element("small", `pixel ${x}, ${y} of ${view.name}`),
      element("p", ["truth: ", ...judged]),
      element("p", [element("b", `margin ${(near - next).toFixed(3)}`), " to the runner-up class"]),
    ]);
    answer.replaceChildren(
      verdict, card("nearest prototype", view.prototype[i], near), card("runner-up class", view.second[i], next));
    draw();
  }
  canvas.addEventListener("click", event => {
    const box = canvas.getBoundingClientRect(), rows = view.prototype.length / view.columns;
    const x = Math.floor((event.clientX - box.left) / box.width * view.width / view.cell);
    const y = Math.floor((event.clientY - box.top) / box.height * view.height / view.cell);
    const inside = (value, end) => Math.min(Math.max(value, 0), end - 1);
    choose(inside(y, rows) * view.columns + inside(x, view.columns));
  });
  canvas.addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -view.columns, ArrowDown: view.columns}[event.key];
    if (step === undefined) return;
    event.preventDefault();
    if (place + step >= 0 && place + step < view.prototype.length) choose(place + step);
  });
  data.views.forEach((raw, i) => document.getElementById("images").append(
    element("button", element("img", null, {src: raw.photo, alt: raw.name}), {title: raw.name, onclick: () => open(raw), type: "button"})));
  Object.keys(notes).forEach((name, i) => document.getElementById("layers").append(
    element("button", name, {type: "button", onclick: () => show(name, i)})));
  function legend() {
    const seen = layer === "classes" ? [...new Set(view.prototype.map(id => Math.floor(id / k)))].sort((a, b) => a - b) : [];
    document.getElementById("layer-note").replaceChildren(
      notes[layer], ...seen.map(i => element("span", [swatch(data.colors[i]), data.classes[i]], {className: "key"})));
  }
  function show(name, i) {
    layer = name;
    legend();
    press("layers", i);
    if (place !== null) draw();
  }
  open(data.views[0]);
  show("photo", 0);
}
