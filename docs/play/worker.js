// worker.js: writes clips for page.js, at most one ahead of it, so that the page never freezes.
//
//     from the page   { scene, prompt, start, ... }  another scene: what is being written is left
//                     { more: true }                 a clip is on show, write the next one
//     to the page     { config, seconds, megabytes, threads } at the start
//                     { scene, codes, right }        after each pass
//                     { scene, pixels, passes, tokens, seconds }  a clip
//                     { error }

import { TextTokenizer, generate } from "./sample.js";
import { load, runtime } from "./runtime.js";

let scene = null, more = false, wake = () => {};
const GIVEN_UP = {}; // thrown in the middle of a clip that nobody will see

onmessage = ({ data }) => {
  if (data.more) more = true;
  else scene = data;
  wake();
};
const message = () => new Promise((resolve) => { wake = resolve; });

// messages arrive between two tasks only; to wait for a timer would cost milliseconds
const channel = new MessageChannel();
const nextTask = () => new Promise((resolve) => {
  channel.port1.onmessage = resolve;
  channel.port2.postMessage(null);
});

/** Write clips of a scene until there is another one. */
async function write(world, wanted) {
  let began, passes, known; // of this clip

  async function watch(codes, right) {
    if (codes.length === right) [began, passes, known] = [performance.now(), 0, right];
    else passes++;
    postMessage({ scene: wanted.scene, codes, right });
    await nextTask();
    if (scene !== wanted) throw GIVEN_UP;
  }

  const { model, tokenizer, text } = world, [t, h, w] = world.config.latent_shape;
  const clips = generate(model, tokenizer, text, wanted.prompt, { ...wanted, watch });
  for await (const pixels of clips) {
    const seconds = (performance.now() - began) / 1000, tokens = t * h * w - known;
    postMessage({ scene: wanted.scene, pixels, passes, tokens, seconds }, [pixels.buffer]);
    for (more = false; !more;) {
      if (scene !== wanted) return;
      await message();
    }
  }
}

async function main() {
  const here = new URL(".", location.href), local = location.search.includes("offline");
  const began = performance.now();
  const ort = await runtime(local ? new URL("ort/", here) : undefined);
  const world = await load(ort, new URL("model/", here));
  world.text = new TextTokenizer(world.config.words);
  const files = performance.getEntriesByType("resource");
  postMessage({
    config: world.config,
    seconds: (performance.now() - began) / 1000,
    megabytes: files.reduce((sum, file) => sum + file.encodedBodySize, 0) / 1e6,
    threads: ort.env.wasm.numThreads,
  });
  for (;;) {
    while (!scene) await message();
    await write(world, scene).catch((e) => { if (e !== GIVEN_UP) throw e; });
  }
}

main().catch((e) => postMessage({ error: e.message ?? String(e) }));
