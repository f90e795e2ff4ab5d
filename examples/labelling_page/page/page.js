// What is clicked goes to the server, which teaches the classes; what comes back is drawn. Names of files and classes
// are data: they are set as text, never as markup.

import {ImageList, classRows, element} from "/lists.js";
import {NONE, View} from "/view.js";

const token = new URLSearchParams(location.search).get("token") ?? "";
const $ = id => document.getElementById(id);
const SHAPES = {click: "point", not: "point", paint: "stroke", brush: "stroke", polygon: "polygon"};

let state = {title: "", read_only: true, images: [], classes: [], order: [], ranked: 0, undo: false, redo: false, version: -1};
let current = null;  // id of the image in view
let chosen = null, tool = "click";  // class id, or NONE; one of SHAPES
let changed = [];  // images that the last click changed most
let mark = 0;  // place in the list of pixels most worth a click
let labelled = true;  // whether labels are drawn at all
const hidden = new Set(), seen = [], passed = new Set();  // classes; images before this one, and those that were offered

const entry = id => state.images.find(image => image.id === id);
const classOf = id => state.classes.find(one => one.id === id);
const nameOf = id => classOf(id)?.name ?? "no label";
const thumb = id => `/thumb/${id}?token=${encodeURIComponent(token)}&v=${state.version}`;
const view = new View($("canvas"), {point: act, stroke, hover: showUnder});
const images = new ImageList($("images"), thumb, id => open(id));

// --- the server --------------------------------------------------------------------------------------------------

async function fetched(path, body) {
  const options = {headers: {"X-Protoseg-Token": token}, cache: "no-store"};
  if (body !== undefined) {
    Object.assign(options, {method: "POST", body: JSON.stringify(body)});
    options.headers["Content-Type"] = "application/json";
  }
  const answer = await fetch(path, options).catch(() => {
    throw new Error("The server does not answer: start the program again; the clicks so far are in its journal.");
  });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error ?? `The server refused ${path} (status ${answer.status}).`);
}
const ask = async (path, body) => (await fetched(path, body)).json();
const bitmap = async (path, options) => createImageBitmap(await (await fetched(path)).blob(), options);

let busy = 0;
/** Do something while the image says that it is busy; what goes wrong is said. */
async function during(work) {
  busy += 1;
  $("canvas").setAttribute("aria-busy", "true");
  await work().catch(complain);
  busy -= 1;
  $("canvas").setAttribute("aria-busy", String(busy > 0));
}

let last = Promise.resolve(), waiting = 0;
/** Changes go one after the other, in the order they were made; the picture follows once the last is answered. */
function send(path, body, then = learnt) {
  if (state.read_only) return;
  waiting += 1;
  $("status").textContent = "Working …";
  last = last.then(() => ask(path, body)).then(then).catch(complain).then(() => {
    waiting -= 1;
    return waiting ? null : refresh();
  }).catch(complain);
  during(() => last);
}
function learnt(answer) {
  changed = answer.changed ?? [];
  $("status").textContent = answer.milliseconds === undefined ? "Done." : `Learnt in ${Math.round(answer.milliseconds)} ms.`;
}
function complain(error) {
  $("status").textContent = "";
  say(error.message, true);
}
function say(sentence, wrong = false) {
  $("message").className = wrong ? "error" : "";
  $("message").hidden = false;
  $("sentence").textContent = sentence;
}

async function refresh() {
  const before = state.version, classes = state.classes.length;
  state = await ask("/state");
  if (before < 0 || classes !== state.classes.length) newColor();
  if (chosen === null || (chosen !== NONE && !classOf(chosen))) chosen = state.classes[0]?.id ?? NONE;
  show();
  if (before === state.version) return;
  showStrip();
  await look();
}
const unranked = () => state.ranked < state.images.filter(image => !image.error).length;
/** Until all images are ranked their order changes by itself; a second, read-only page follows the first one. */
async function follow() {
  await new Promise(done => setTimeout(done, unranked() ? 1500 : 5000));
  if (!document.hidden && !waiting && (unranked() || state.read_only)) await refresh().catch(complain);
  follow();
}

// --- the image in view -------------------------------------------------------------------------------------------

const open = id => during(() => opened(id));
async function opened(id) {
  if (current !== null && current !== id) seen.push(current);
  passed.add(id);
  current = id;
  mark = 0;
  const {error} = entry(id);
  view.empty(entry(id));
  $("empty").textContent = error ?? "Loading …";
  $("empty").hidden = false;
  show();
  if (error) return;
  const photo = await bitmap(`/image/${id}`);
  if (current !== id) return;  // another was opened meanwhile
  view.photo = photo;
  $("empty").hidden = true;
  await look();
}

/** Labels and marks of the image in view, as of now; labels first, which are what is waited for. */
async function look() {
  const id = current;
  if (id === null || entry(id).error) return;
  const exact = {colorSpaceConversion: "none", premultiplyAlpha: "none"};
  const picture = await bitmap(`/labels/${id}`, exact);
  if (current !== id) return;
  const {width, height} = picture, flat = new OffscreenCanvas(width, height).getContext("2d");
  flat.drawImage(picture, 0, 0);
  const rgba = flat.getImageData(0, 0, width, height).data, ids = new Uint8Array(width * height);
  for (let i = 0; i < ids.length; i++) ids[i] = rgba[4 * i];
  Object.assign(view, {labels: ids, width, height});
  recolour();
  showUnder();
  const {points, clicks} = await ask(`/worth/${id}`);
  if (current !== id) return;
  Object.assign(view, {worth: points, taught: clicks ?? view.taught});
  mark = 0;
  view.draw();
}
function recolour() {
  const visible = state.classes.filter(one => labelled && !hidden.has(one.id));
  view.colors = new Map(visible.map(one => [one.id, one.color]));
  view.ink = classOf(chosen)?.color ?? [255, 255, 255];
  view.colour();
}

/** The tool at a pixel, by click, tap or Enter. */
function act(point) {
  if (state.read_only || !view.photo || !view.inside(point)) return;
  if (tool === "polygon") {
    if (view.corner(point)) closePolygon();
    return;
  }
  if (view.shape === "stroke") return stroke([point]);
  const [x, y] = point.map(Math.floor), not = tool === "not", id = not ? view.classAt(point) : chosen;
  if (id === NONE && not) return say("Not this: expected a pixel with a label, got one without: click with a class instead.", true);
  if (id === NONE) return say("Click: expected a class, got “no label”: choose a class; the brush takes labels away.", true);
  view.taught.push([x, y, id, not]);
  view.worth = view.worth.filter(other => view.apart(other, [x, y]) > 12);
  view.draw();
  send("/click", {image: current, x, y, class: id, not});
}
function stroke(line) {
  if (state.read_only || !view.photo) return;
  const points = line.map(point => point.map(Math.floor)), {radius} = view;
  if (tool === "brush") return send("/correct", {image: current, stroke: points, radius, class: chosen});
  if (chosen === NONE) return say("Paint: expected a class, got “no label”: choose a class; the brush takes labels away.", true);
  send("/stroke", {image: current, points, radius, class: chosen});
}
function closePolygon() {
  if (view.line.length < 3) return say("Polygon: expected three corners or more: click the others, then press Enter.", true);
  const polygon = view.line.map(point => point.map(Math.floor));
  view.line = [];
  send("/correct", {image: current, polygon, class: chosen});
}

// --- what can be done --------------------------------------------------------------------------------------------

function next() {
  const left = state.order.filter(id => id !== current && !entry(id).done && !entry(id).error);
  const fresh = left.filter(id => !passed.has(id));
  if (!left.length) return say("No other image is left to be finished.");
  if (!fresh.length) passed.clear();
  open((fresh.length ? fresh : left)[0]);
}
function back() {
  const id = seen.pop();
  if (id === undefined) return;
  open(id);
  seen.pop();  // the image that was left
  show();
}
function accept() {
  if (current === null || entry(current).error) return;
  const id = current, done = !entry(id).done;
  send("/done", {image: id, done}, () => {
    entry(id).done = done;
    $("status").textContent = `${entry(id).name} is ${done ? "finished" : "open again"}.`;
    if (done && current === id && state.order.some(other => other !== id && !entry(other).done)) next();
  });
}
const save = () => send("/save", {}, paths => {
  $("status").textContent = "Saved.";
  say(["Saved.", ...Object.entries(paths).filter(pair => typeof pair[1] === "string").map(pair => pair.join(": "))].join("\n"));
});
function addClass(event) {
  event.preventDefault();
  const name = $("name").value.trim(), color = [1, 3, 5].map(i => parseInt($("color").value.slice(i, i + 2), 16));
  send("/class", {name, color}, ({id}) => {
    chosen = id;
    use("click");
    if ($("name").value.trim() === name) $("name").value = "";
    $("name").blur();
    $("status").textContent = `${name} is a class now: click pixels of it.`;
  });
}
/** Offer a colour that no class has: hues far apart, one after the other. */
function newColor() {
  const taken = new Set(state.classes.map(one => String(one.color)));
  for (let turn = state.classes.length; ; turn++) {
    const hue = (turn * 137.5 + 20) % 360;
    const color = [0, 8, 4].map(n => {
      const k = (n + hue / 30) % 12;
      return Math.round(255 * (0.55 - 0.38 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
    });
    if (taken.has(String(color))) continue;
    $("color").value = `#${color.map(part => part.toString(16).padStart(2, "0")).join("")}`;
    return;
  }
}
function use(name) {
  tool = name;
  view.shape = SHAPES[name];
  view.line = [];
  view.draw();
  show();
}
function choose(id) {
  chosen = id;
  if (id === NONE && !["brush", "polygon"].includes(tool)) use("brush");
  recolour();
  show();
}
function toggle(id) {
  hidden.delete(id) || hidden.add(id);
  recolour();
  show();
}
function resize(radius) {
  view.radius = Math.min(Math.max(Math.round(radius), 1), 80);
  $("radius").value = view.radius;
  view.draw();
}
function nextMark() {
  if (!view.worth.length) return;
  move(view.worth[mark % view.worth.length].slice(0, 2).map(value => value + 0.5));
  mark += 1;
}
function move(point) {
  const [x, y] = point;
  view.cross = [Math.min(Math.max(x, 0.5), view.width - 0.5), Math.min(Math.max(y, 0.5), view.height - 0.5)];
  $("canvas").focus({preventScroll: true});
  view.reveal(view.cross);
  view.draw();
  showUnder();
}

// --- what is shown -----------------------------------------------------------------------------------------------

function show() {
  const usable = state.images.filter(image => !image.error), image = entry(current);
  document.title = $("title").textContent = state.title || "Labelling by clicks";
  $("place").textContent = image
    ? `${image.name} · ${image.done ? "finished" : `${image.clicks} click${image.clicks === 1 ? "" : "s"}`}` : "";
  $("ranking").hidden = !unranked();
  Object.assign($("ranked"), {max: usable.length || 1, value: state.ranked});
  $("ranked-text").textContent = `${state.ranked} of ${usable.length} images ranked`;
  $("read-only").hidden = !state.read_only;
  for (const id of ["teach", "correct", "add", "accept", "save", "undo", "redo"]) $(id).hidden = state.read_only;
  $("undo").disabled = !state.undo;
  $("redo").disabled = !state.redo;
  $("back").disabled = !seen.length;
  $("accept").disabled = !image || Boolean(image.error);
  $("accept").textContent = image?.done ? "Open again" : "Accept";
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", button.dataset.tool === tool);
  }
  $("radius-box").hidden = view.shape !== "stroke";
  showClasses();
  const finished = state.images.filter(image => image.done).length;
  $("finished").textContent = `${finished} of ${state.images.length} finished`;
  images.show(state, current);
}

function showClasses() {
  const focused = document.activeElement?.dataset?.key;
  $("classes").replaceChildren(...classRows(state, chosen, hidden, {choose, toggle}));
  $("all").textContent = labelled ? "Hide all" : "Show all";
  if (focused) document.querySelector(`[data-key="${focused}"]`)?.focus();
}

/** The images that the last click changed most. */
function showStrip() {
  const known = changed.filter(id => entry(id));
  if (!known.length) return;
  $("changed").replaceChildren(...known.map(id => element("button",
    [element("img", null, {alt: "", src: thumb(id)}), element("span", entry(id).name)],
    {type: "button", title: `Open ${entry(id).name}`, onclick: () => open(id)})));
  images.renew(known);
}

function showUnder() {
  const at = view.cross ?? view.hover;
  $("under").textContent = at && view.labels && view.inside(at)
    ? `${Math.floor(at[0])}, ${Math.floor(at[1])}: ${nameOf(view.classAt(at))}` : "";
}

// --- mouse and keys ----------------------------------------------------------------------------------------------

const change = path => () => send(path, {});
const doing = {
  undo: change("/undo"), redo: change("/redo"), back, next, accept, save, fit: () => view.fit(),
  closer: () => view.zoom(1.5), farther: () => view.zoom(1 / 1.5),
  help: () => $("keys").showModal(), "keys-close": () => $("keys").close(), close: () => { $("message").hidden = true; },
  all: () => {
    labelled = !labelled;
    recolour();
    show();
  },
};
for (const [id, action] of Object.entries(doing)) $(id).addEventListener("click", action);
for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => use(button.dataset.tool));
$("add").addEventListener("submit", addClass);
$("radius").addEventListener("input", event => resize(Number(event.target.value)));
$("opacity").addEventListener("input", event => {
  view.opacity = event.target.value / 100;
  view.draw();
});
$("canvas").addEventListener("dblclick", () => { if (tool === "polygon" && view.line.length > 2) closePolygon(); });

const taken = name => () => { if (!state.read_only) use(name); };
const keys = {
  c: taken("click"), p: taken("paint"), x: taken("not"), b: taken("brush"), g: taken("polygon"),
  z: doing.undo, y: doing.redo, n: next, N: back, a: accept, s: save, w: nextMark, l: doing.all, f: doing.fit, "?": doing.help,
  "+": doing.closer, "=": doing.closer, "-": doing.farther,
  h: () => { if (classOf(chosen)) toggle(chosen); },
  m: () => {
    view.marked = !view.marked;
    view.draw();
  },
  "[": () => resize(view.radius / 1.3 - 0.5), "]": () => resize(view.radius * 1.3 + 0.5),
};
const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
/** What a key does in the image; false where it does nothing there. */
function inImage(event) {
  const start = view.cross ?? [view.width / 2, view.height / 2];
  if (event.key in steps) {
    const far = Math.max(1, Math.round((event.shiftKey ? 40 : 5) / view.scale));
    move(steps[event.key].map((step, i) => start[i] + far * step));
  } else if (event.key === "Enter" && tool === "polygon" && view.line.length && !view.cross) closePolygon();
  else if (event.key === "Enter" && view.cross) act(view.cross);
  else if (event.key === "Backspace") view.line.pop();
  else if (event.key === "Escape") Object.assign(view, {line: [], cross: null});
  else return event.key === " ";
  view.draw();
  return true;
}
addEventListener("keydown", event => {
  const {target, key} = event, command = event.ctrlKey || event.metaKey;
  if ($("keys").open || target.matches("input[type=text]") || event.altKey) return;
  if (target === $("canvas") && !command && inImage(event)) return event.preventDefault();
  const found = command ? {z: event.shiftKey ? doing.redo : doing.undo, y: doing.redo, s: save}[key.toLowerCase()] : keys[key];
  if (found) found();
  else if (!command && /^[1-9]$/.test(key) && state.classes[key - 1]) choose(state.classes[key - 1].id);
  else return;
  event.preventDefault();
});

await during(refresh);
const first = state.order.find(id => !entry(id).done && !entry(id).error) ?? state.images[0]?.id;
if (first !== undefined) await open(first);
else if (!state.images.length && state.version >= 0) say("This folder has no images.");
follow();
