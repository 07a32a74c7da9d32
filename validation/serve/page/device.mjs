// What this browser tells of itself and of the device; it measures nothing and shows nothing.

export async function describe() {
  const told = await agent();
  const [adapter, reason] = await webgpu();
  return {
    ...told,
    cores: navigator.hardwareConcurrency ?? 0,
    memory: navigator.deviceMemory ?? 0,
    isolated: self.crossOriginIsolated === true,
    adapter, no_adapter: reason,
    webnn: await webnn(),
  };
}

// Chromium tells in fields; others in a sentence, of which name and version are read and the rest is left as it is.
async function agent() {
  const data = navigator.userAgentData;
  if (data) {
    const wanted = ['architecture', 'bitness', 'model', 'platformVersion', 'fullVersionList'];
    const more = await data.getHighEntropyValues(wanted).catch(() => ({}));
    const brands = (more.fullVersionList ?? data.brands).filter(each => !/not.?a.?brand/i.test(each.brand));
    const brand = brands.find(each => each.brand !== 'Chromium') ?? brands[0] ?? { brand: '', version: '' };
    return {
      browser: brand.brand, version: brand.version,
      system: [data.platform, more.platformVersion].filter(Boolean).join(' '),
      model: more.model ?? '',
      architecture: [more.architecture, more.bitness && `${more.bitness} bit`].filter(Boolean).join(' '),
    };
  }
  const text = navigator.userAgent;
  const name = /(Firefox|FxiOS|CriOS|EdgiOS|Edg|Chrome)\/([\d.]+)/.exec(text)
    ?? /(Version)\/([\d.]+).*Safari/.exec(text);
  return {
    browser: !name ? '' : name[1] === 'Version' ? 'Safari' : name[1], version: name?.[2] ?? '',
    system: /\(([^)]*)\)/.exec(text)?.[1] ?? '', model: '', architecture: '',
  };
}

async function webgpu() {
  if (!navigator.gpu) return [null, self.isSecureContext ? 'it has no WebGPU' : 'WebGPU needs HTTPS or localhost'];
  try {
    const found = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' });
    if (!found) return [null, 'it has WebGPU, but no adapter for it'];
    const { vendor = '', architecture = '', description = '', isFallbackAdapter } = found.info ?? {};
    const named = /swiftshader|llvmpipe|basic render/i.test(`${architecture} ${description}`);
    const software = named || Boolean(isFallbackAdapter);
    const half = found.features.has('shader-f16');
    return [{ vendor, architecture, description, software, half, max_buffer: found.limits.maxBufferSize }, ''];
  } catch (error) {
    return [null, String(error)];
  }
}

async function webnn() {
  const found = {};
  for (const deviceType of ['cpu', 'gpu', 'npu']) {
    if (navigator.ml) {
      const tried = navigator.ml.createContext({ deviceType });
      found[deviceType] = await tried.then(context => (context.destroy?.(), ''), String);
    } else found[deviceType] = self.isSecureContext ? 'this browser has no WebNN' : 'WebNN needs HTTPS or localhost';
  }
  return found;
}
