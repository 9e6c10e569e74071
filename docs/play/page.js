// page.js: what a visitor sees. worker.js writes the clips, here they are shown.
//
// Play starts a scene; another one takes effect when the clip on show ends: from its last frames
// ("go on") or from nothing ("cut"). All frames of the last minute are kept, to be saved.

import { CONTEXT, FPS } from "./sample.js";
import { toWebM } from "./save.js";

const $ = (id) => document.getElementById(id);
const SAMPLING = ["cfg_scale", "temperature", "top_k", "floor"];
const KEPT = Math.round(60 * FPS); // frames

let config, worker;
let scene = 0; // the number of the last one that was asked for
let next = null; // the clip that follows the one on show
let film = []; // frames, RGBA, up to the end of the clip on show
let ahead = 0; // how many of them are not yet shown
let frames = 0; // how many were shown
let playing = false, due = 0;
let prompts = []; // by scene
let writing = null; // { codes, right } of the clip being written, until drawn

// ---- the worker ----

function start() {
  const missing = {
    WebAssembly: !self.WebAssembly,
    workers: !self.Worker,
    "a canvas": !$("video").getContext?.("2d"),
  };
  const names = Object.keys(missing).filter((name) => missing[name]);
  if (names.length) return fail(`This browser lacks ${names.join(" and ")}, which the page needs.`);
  $("status").textContent = "Loading the model and the program that computes it, some 30 MB ...";
  worker = new Worker(`worker.js${location.search}`, { type: "module" });
  worker.onerror = () => fail("The worker could not be started: a browser of 2023 or later can.");
  worker.onmessage = ({ data }) => {
    if (data.error) fail(`The model cannot be computed here: ${data.error}`);
    else if (data.config) ready(data);
    else if (data.scene !== scene) return; // of a scene that was left
    else if (data.pixels) arrived(data);
    else writing = data;
  };
}

function fail(message) {
  $("error").textContent = message;
  $("status").textContent = "";
  playing = false;
  for (const button of document.querySelectorAll("button")) button.disabled = true;
}

function ready({ config: loaded, seconds, megabytes, threads }) {
  config = loaded;
  const [t] = config.latent_shape;
  for (const name of SAMPLING) $(name).value = config.sampling[name];
  for (const n of [1, 5, 9, 17, 33]) {
    if (n < 4 * t - 3) $("context").add(new Option(n)); // fewer than a clip has
  }
  $("context").value = CONTEXT;
  $("prompt").value ||= config.examples[0];
  for (const example of config.examples) {
    const button = Object.assign(document.createElement("button"), { textContent: example });
    button.className = "link";
    button.onclick = () => { $("prompt").value = example; };
    $("examples").append(button);
  }
  $("video").width = $("video").height = config.resolution;
  showOutputs();
  drawTokens([], 0);
  $("play").disabled = false;
  $("status").textContent = `Ready: ${megabytes.toFixed(0)} MB loaded in ${seconds.toFixed(1)} s, ` +
    `${threads === 1 ? "one thread" : `${threads} threads`}.`;
  requestAnimationFrame(tick);
}

// ---- scenes and clips ----

function ask(cut) {
  const seen = cut ? [] : film.slice(-$("context").value);
  next = null;
  prompts[++scene] = $("prompt").value;
  const words = new Set(config.words.length ? $("prompt").value.match(/\w+/g) : []);
  const unknown = [...words].filter((word) => !config.words.includes(` ${word}`)).join(" ");
  $("unknown").textContent = unknown && `No training caption has: ${unknown}`;
  worker.postMessage({
    scene,
    prompt: $("prompt").value,
    start: seen.length ? flat(seen) : null,
    seed: Number($("seed").value),
    context: Number($("context").value),
    reencode: $("reencode").checked,
    sampling: Object.fromEntries(SAMPLING.map((name) => [name, Number($(name).value)])),
  });
  setPlaying(true);
  $("continue").disabled = $("cut").disabled = false;
}

function arrived(clip) {
  next = clip;
  const n = clip.pixels.length / (4 * config.resolution ** 2);
  $("status").textContent =
    `${(clip.passes / clip.seconds).toFixed(1)} passes/s with pixels, ` +
    `${(clip.tokens / clip.passes).toFixed(1)} tokens per pass: ` +
    `${(n / FPS / clip.seconds).toFixed(2)} seconds of video per second on this machine.`;
}

/** Begin to show the clip that arrived. */
function advance() {
  const size = 4 * config.resolution ** 2, { pixels } = next;
  for (let at = 0; at < pixels.length; at += size) film.push(pixels.subarray(at, at + size));
  ahead = pixels.length / size;
  film = film.slice(-KEPT - ahead);
  film.prompt = prompts[next.scene];
  next = null;
  worker.postMessage({ more: true });
}

function tick(now) {
  requestAnimationFrame(tick);
  if (writing) drawTokens(writing.codes, writing.right);
  writing = null;
  if (!playing || now < due) return;
  if (!ahead && next) advance();
  if (!ahead) return;
  const step = 1000 / FPS / $("speed").value;
  due = now - due < step ? due + step : now + step; // late by more than a frame: no hurry
  drawFrame(film.at(-ahead));
  ahead--;
}

function setPlaying(on) {
  playing = on;
  $("play").textContent = on ? "Pause" : "Play";
}

// ---- pictures ----

function drawFrame(pixels) {
  const size = config.resolution;
  $("video").getContext("2d").putImageData(new ImageData(pixels, size, size), 0, 0);
  const seconds = Math.floor(frames++ / FPS);
  const clock = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  $("clock").textContent = `${clock} ${film.prompt}`;
  $("save").disabled = !self.VideoEncoder;
  $("save").title = self.VideoEncoder ? "" : "This browser cannot write video files (WebCodecs).";
}

/** The codes of a clip so far: a tile per latent frame, 8x8 pixels per code. Those from `right` on
 * are of the last pass; the last one took the place of a wrong guess. */
function drawTokens(codes, right) {
  const [t, h, w] = config.latent_shape, columns = 5, gap = 6;
  const canvas = $("tokens"), width = 8 * w + gap, height = 8 * h + gap;
  canvas.width = columns * width - gap; // which clears it
  canvas.height = Math.ceil(t / columns) * height - gap;
  const context = canvas.getContext("2d");
  for (let i = 0; i < t * h * w; i++) {
    const tile = Math.floor(i / h / w), row = Math.floor(i / w) % h;
    const x = tile % columns * width + 8 * (i % w);
    const y = Math.floor(tile / columns) * height + 8 * row;
    context.fillStyle = i < codes.length ? `rgb(${config.colors[codes[i]]})` : "#8883";
    context.fillRect(x, y, 8, 8);
    if (i < right || i >= codes.length - 1) continue;
    context.strokeStyle = "white";
    context.strokeRect(x + 0.5, y + 0.5, 7, 7);
  }
}

// ---- controls ----

const flat = (parts) => {
  const all = new Uint8ClampedArray(parts.length * parts[0].length);
  parts.forEach((part, i) => all.set(part, i * part.length));
  return all;
};

function showOutputs() {
  for (const output of document.querySelectorAll("output")) {
    output.textContent = output.previousElementSibling.value;
  }
}

async function save() {
  $("save").disabled = true;
  try {
    const shown = film.slice(0, film.length - ahead).slice(-KEPT);
    const file = await toWebM(shown, config.resolution, FPS);
    const link = Object.assign(document.createElement("a"), { download: "loong.webm" });
    link.href = URL.createObjectURL(file);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60e3);
  } catch (e) {
    $("status").textContent = `The video cannot be saved here: ${e.message}`;
  }
  $("save").disabled = false;
}

$("play").onclick = () => (scene ? setPlaying(!playing) : ask(true));
$("cut").onclick = () => ask(true);
$("continue").onclick = () => ask(false);
$("prompt").onkeydown = ({ key }) => key === "Enter" && config && ask(!scene);
$("save").onclick = save;
document.oninput = showOutputs;
start();
