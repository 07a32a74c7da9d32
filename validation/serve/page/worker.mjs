// Loads the graphs of one artifact with onnxruntime-web and does what the server says, until that says it is over.
// Everything about the graphs comes with the command `open`. A state is a number of the server's and tensors here.

const held = new Map();
let ort, graphs, state, logs = [], devices = [];

self.onmessage = ({ data }) => {
  if (!data.visit) return;
  talk(data).then(() => self.postMessage({ closed: true }), error => self.postMessage({ failed: String(error) }));
};

// Asks for a command with the answer to the last one. One that comes again, as its answer was lost, is not done again.
async function talk({ visit, cell }) {
  let answer, done = { seq: 0 };
  for (;;) {
    const { header, blob } = unpack(await post(`api/hand?visit=${visit}&cell=${cell}`, answer));
    if (header.op === 'close') return;
    answer = undefined;
    if (header.op === 'wait') continue;
    for (const number of header.drop) forget(number);
    if (header.seq !== done.seq) done = { seq: header.seq, frame: await execute(header, blob) };
    answer = done.frame;
  }
}

async function post(url, body) {
  for (let attempt = 1; ; attempt++) {
    try {
      const response = await fetch(url, { method: 'POST', body });
      if (response.ok) return await response.arrayBuffer();
      throw Object.assign(new Error(`the server said ${response.status}: ${await response.text()}`), { final: true });
    } catch (error) {
      if (error.final || attempt === 6) throw error;
      await new Promise(resolve => setTimeout(resolve, 500 * attempt));
    }
  }
}

async function execute(command, blob) {
  const seq = command.seq;
  try {
    const { header, parts } = await operations[command.op](command, blob);
    return pack({ seq, ...header }, parts);
  } catch (error) {
    return pack({ seq, error: String(error?.message ?? error).slice(0, 2000) }, []);
  }
}

const operations = {
  async open(command) {
    listen();
    const [script, wasm] = command.provider === 'wasm' ? ['ort.wasm', ''] : ['ort.webgpu', '.asyncify'];
    ort = await import(`./ort/${script}.min.mjs`);
    ort.env.wasm.wasmPaths = new URL('./ort/', import.meta.url).href;
    ort.env.wasm.wasmBinary = (await file(`ort/ort-wasm-simd-threaded${wasm}.wasm`)).buffer;
    ort.env.wasm.numThreads = command.threads;
    state = command.state;
    const data = [];
    for (const { path, url } of command.data) data.push({ path, data: await file(url) });
    const models = [];
    for (const graph of command.graphs) models.push(await file(graph.url));
    const load = async talkative => {
      const made = [];
      for (const [index, graph] of command.graphs.entries()) {
        const chosen = options(command, graph, data, talkative && !index);
        const session = await ort.InferenceSession.create(models[index], chosen);
        made.push({ ...graph, session, rank: shapeOf(session, graph.input).length });
      }
      return made;
    };
    const before = performance.now();
    graphs = await load(true);
    const seconds = [(performance.now() - before) / 1000];
    const nodes = placed();
    if (command.provider === 'webgpu') { // a session that says where its nodes are goes on talking in every run
      for (const graph of graphs) await graph.session.release();
      graphs = await load(false);
    }
    graphs = new Map(graphs.map(graph => [graph.tokens, graph]));
    logs = null;
    self.postMessage({ loaded: true });
    return { header: { seconds, opened: { threads: ort.env.wasm.numThreads, nodes, devices } }, parts: [] };
  },

  async write({ to }, blob) {
    let start = 0;
    held.set(to, state.map(({ dtype, shape }) => {
      const size = elements(shape) * (dtype === 'float16' ? 2 : 4);
      const bytes = blob.slice(start, start + size);
      start += size;
      return new ort.Tensor(dtype, dtype === 'float16' ? new Half(bytes) : new Float32Array(bytes), shape);
    }));
    return { header: {}, parts: [] };
  },

  async read({ from }) {
    const parts = [];
    for (const tensor of held.get(from)) parts.push(await tensor.getData());
    return { header: {}, parts };
  },

  async run({ from, to, calls }) {
    let tensors = held.get(from), logits, seconds = [];
    for (const [index, [size, ids]] of calls.entries()) {
      const before = performance.now();
      const out = await call(graphs.get(size), ids, tensors);
      seconds.push((performance.now() - before) / 1000);
      if (index) drop(tensors);
      ({ logits, tensors } = out);
    }
    held.set(to, tensors);
    return { header: { seconds, logits: typeOf(logits) }, parts: [logits] };
  },

  async decode({ from, to, token, count }) {
    let tensors = held.get(from), logits, seconds = [], id = token;
    for (let index = 0; index < count; index++) {
      const before = performance.now();
      const out = await call(graphs.get(1), [id], tensors);
      seconds.push((performance.now() - before) / 1000);
      if (index) drop(tensors);
      ({ logits, tensors } = out);
      id = greedy(logits);
    }
    held.set(to, tensors);
    return { header: { seconds, logits: typeOf(logits) }, parts: [logits] };
  },
};

// State tensors stay where the provider has them; only logits come back.
function options(command, graph, externalData, talkative) {
  const where = { wasm: 'cpu', webgpu: 'gpu-buffer', webnn: 'ml-tensor' }[command.provider];
  const provider = command.provider === 'webnn' ? { name: 'webnn', deviceType: command.device } : command.provider;
  return {
    executionProviders: [provider],
    externalData,
    preferredOutputLocation: Object.fromEntries([[graph.output, 'cpu'], ...state.map(({ output }) => [output, where])]),
    logSeverityLevel: talkative ? 0 : 3,
  };
}

async function call(graph, ids, tensors) {
  const wide = graph.dtype === 'int64';
  const data = wide ? BigInt64Array.from(ids, BigInt) : Int32Array.from(ids);
  const feeds = { [graph.input]: new ort.Tensor(graph.dtype, data, [...Array(graph.rank - 1).fill(1), ids.length]) };
  state.forEach(({ input }, index) => { feeds[input] = tensors[index]; });
  const out = await graph.session.run(feeds);
  const logits = await out[graph.output].getData();
  return { logits, tensors: state.map(({ output }) => out[output]) };
}

// ONNX Runtime writes to the console where it put each node, and in no other place; WebNN's graph tells its devices.
function listen() {
  for (const level of ['debug', 'log', 'info', 'warn', 'error']) {
    const original = console[level];
    console[level] = (...words) => {
      if (logs && /\[[VIW]:onnxruntime/.test(words[0])) logs.push(words.join(' '));
      else original(...words);
    };
  }
  const builder = self.MLGraphBuilder?.prototype;
  if (builder) {
    const build = builder.build;
    builder.build = async function (...words) {
      const graph = await build.apply(this, words);
      if (graph.devices) devices = [...new Set([...devices, ...graph.devices])];
      return graph;
    };
  }
}

function placed() {
  const nodes = {};
  for (const line of logs) {
    const found = /placed on \[(\w+)\]\. Number of nodes: (\d+)/.exec(line);
    if (found) nodes[found[1]] = (nodes[found[1]] ?? 0) + Number(found[2]);
  }
  return nodes;
}

// The page downloads, once for all places; here its files become bytes.
function file(url) {
  return new Promise((resolve, reject) => {
    const listener = ({ data }) => {
      if (data.url !== url) return;
      self.removeEventListener('message', listener);
      if (data.blob) data.blob.arrayBuffer().then(bytes => resolve(new Uint8Array(bytes)), reject);
      else reject(new Error(data.failed));
    };
    self.addEventListener('message', listener);
    self.postMessage({ need: url });
  });
}

const Half = self.Float16Array ?? Uint16Array;
const elements = shape => shape.reduce((product, size) => product * size, 1);
const typeOf = array => (array instanceof Float32Array ? 'float32' : 'float16');
const shapeOf = (session, name) => session.inputMetadata.find(port => port.name === name).shape;
const drop = tensors => tensors.forEach(tensor => tensor.dispose());
const greedy = logits => logits.reduce((best, value, index) => (value > logits[best] ? index : best), 0);

function forget(number) {
  if (held.has(number)) drop(held.get(number));
  held.delete(number);
}

function pack(header, parts) {
  const text = new TextEncoder().encode(JSON.stringify(header));
  return new Blob([Uint32Array.of(text.length), text, ...parts]);
}

function unpack(frame) {
  const length = new DataView(frame).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(frame, 4, length)));
  return { header, blob: frame.slice(4 + length) };
}
