// The viewer's script: for every pixel one ray, through layered depth images from near to far as export/layers.py's
// render_layers draws them, or onto the two reliefs of a photo. World axes as in docs/conventions.md: x right, y down, z forward.
"use strict";
(() => {
  const scene = JSON.parse(document.getElementById("scene").textContent);
  const frame = document.getElementById("frame");
  const still = document.getElementById("still");
  const status = document.getElementById("status");
  const BOUND_RAD = scene.bound_rad;
  const KEY_STEP_RAD = 0.1 * BOUND_RAD;
  const MAX_ZOOM = 4;
  const MAX_PX = 1024;
  const TILES = 16; // parts of the view a side, each of which leaves out layers that it cannot see
  const SLOW_MS = 45; // a frame that takes longer is drawn with fewer pixels while things move

  const view = { yaw: 0, pitch: 0, zoom: scene.zoom, disparity: false };
  let canvas = null, gl = null, program = null, places = {}, images = null;
  let quality = 1, moving = false, pending = false, settle = 0, swaying = false, tilt = null;

  const VERTEX = `#version 300 es
    const int TILES = ${TILES};
    layout(location = 0) in uint wanted;
    flat out uint mask;
    out vec2 place;
    void main() {
      ivec2 tile = ivec2(gl_InstanceID % TILES, gl_InstanceID / TILES) + ivec2(gl_VertexID & 1, gl_VertexID >> 1);
      place = vec2(tile) / float(TILES) * 2.0 - 1.0;
      mask = wanted;
      gl_Position = vec4(place.x, -place.y, 0.0, 1.0);
    }`;
  const HEAD = `#version 300 es
    precision highp float;
    precision highp sampler2DArray;
    uniform sampler2DArray colours, shapes;  // of layers: rgb; opacity and s. Of sheets: rgb; s in 16 bits
    uniform sampler2D colour_map;
    uniform mat3 rotation;                   // camera to world
    uniform vec3 origin;                     // of the camera, in the canonical camera's coordinates
    uniform float view_tangent, inverse_range, inverse_far;
    uniform vec2 tangent, shown;
    uniform bool disparity;
    flat in uint mask;
    in vec2 place;
    out vec4 pixel;
    float z_of(float s) { return 1.0 / (s * inverse_range + inverse_far); }
    float s_of(float z) { return clamp((1.0 / max(z, 1e-3) - inverse_far) / inverse_range, 0.0, 1.0); }
    void show(vec3 colour, float s) {
      float level = clamp((s - shown.x) / (shown.y - shown.x), 0.0, 1.0);
      pixel = vec4(disparity ? texture(colour_map, vec2((level * 255.0 + 0.5) / 256.0, 0.5)).rgb : colour, 1.0);
    }`;
  // Surfaces within thin layers, blended from near to far.
  const LAYERED = () => `
    const int LAYERS = ${scene.planes_s.length};
    uniform vec4 bins[LAYERS];               // the plane's s, lowest s, extent of s
    void main() {
      vec3 ray = rotation * vec3(place * view_tangent, 1.0);
      vec3 sum = vec3(0.0);
      float sum_s = 0.0, passing = 1.0;
      for (int i = 0; i < LAYERS; ++i) {
        if ((mask & (1u << i)) == 0u) continue;
        float s = bins[i].x, z_depth;
        vec2 uv, shape;
        for (int step = 0; step < 3; ++step) {
          float z = z_of(s);
          z_depth = (z - origin.z) / ray.z;
          uv = 0.5 + 0.5 * (origin.xy + z_depth * ray.xy) / (z * tangent);
          shape = texture(shapes, vec3(uv, float(i))).rg;
          s = bins[i].y + bins[i].z * shape.g;
        }
        float weight = z_depth > 0.0 ? passing * shape.r : 0.0;
        if (weight > 0.0) {
          sum += weight * texture(colours, vec3(uv, float(i))).rgb;
          sum_s += weight * s_of(z_depth);
          passing -= weight;
          if (passing < 0.004) break;
        }
      }
      show(sum, sum_s);
    }`;
  // A photo on its relief, and what is behind its edges: as rendering/relief.py and pipelines/detail.py have it.
  const SHEETS = () => `
    const int MOST_STEPS = 256;
    uniform vec4 ranges;                     // lowest and highest s of the front and of what is behind
    uniform vec2 fades;
    vec2 texels;
    // Beyond its edges the photo goes on mirrored, at the centres of its outermost pixels.
    vec2 mirrored(vec2 uv) {
      vec2 inner = 1.0 - 1.0 / texels;
      return 0.5 / texels + inner * abs(mod((uv - 0.5 / texels) / inner + 1.0, 2.0) - 1.0);
    }
    float relief(int sheet, vec2 uv) {
      return dot(texture(shapes, vec3(mirrored(uv), float(sheet))).rg, vec2(65280.0, 255.0)) / 65535.0;
    }
    // Keys' kernel with a = -0.75, over four texels a side; bilinear samples would blur a photo's texture.
    vec4 cubic(float t) {
      vec4 d = vec4(1.0 + t, t, 1.0 - t, 2.0 - t);
      vec2 near = (1.25 * d.yz - 2.25) * d.yz * d.yz + 1.0;
      vec2 far = ((-0.75 * d.xw + 3.75) * d.xw - 6.0) * d.xw + 3.0;
      return vec4(far.x, near, far.y);
    }
    vec3 sharp(int sheet, vec2 uv) {
      ivec2 last = ivec2(texels) - 1;
      vec2 at = uv * texels - 0.5;
      ivec2 first = ivec2(floor(at));
      vec4 wx = cubic(at.x - float(first.x)), wy = cubic(at.y - float(first.y));
      vec3 sum = vec3(0.0);
      for (int y = 0; y < 4; ++y) {
        for (int x = 0; x < 4; ++x) {
          ivec2 texel = last - abs(last - abs(first + ivec2(x - 1, y - 1)));
          sum += wx[x] * wy[y] * texelFetch(colours, ivec3(max(texel, 0), sheet), 0).rgb;
        }
      }
      return clamp(sum, 0.0, 1.0);
    }
    // The s at which the ray base + s along enters a relief: marched a texel at a time, then bisected.
    float enter(int sheet, vec2 base, vec2 along, vec2 range) {
      float extent = range.y - range.x;
      int steps = clamp(int(ceil(length(along * texels) * extent)), 1, MOST_STEPS);
      int first = steps;
      for (int i = 0; i < steps; ++i) {
        float s = range.y - extent * float(i) / float(steps);
        if (relief(sheet, base + s * along) >= s) {
          first = i;
          break;
        }
      }
      float front = range.y - extent * float(max(first - 1, 0)) / float(steps);
      float behind = range.y - extent * float(first) / float(steps);
      for (int i = 0; i < 6; ++i) {
        float middle = 0.5 * (front + behind);
        if (relief(sheet, base + middle * along) >= middle) behind = middle;
        else front = middle;
      }
      return 0.5 * (front + behind);
    }
    void main() {
      texels = vec2(textureSize(shapes, 0).xy);
      vec3 ray = rotation * vec3(place * view_tangent, 1.0);
      vec2 shift = origin.xy - origin.z * ray.xy / ray.z;
      vec2 along = 0.5 * shift * inverse_range / tangent;
      vec2 base = 0.5 + 0.5 * (ray.xy / ray.z + shift * inverse_far) / tangent;
      float s = enter(0, base, along, ranges.xy);
      vec2 uv = base + s * along, step = 0.5 / texels;
      vec3 colour = sharp(0, uv);
      // A texel of the relief grows to 1 - gradient . along.
      vec2 slope = vec2(
        relief(0, uv + vec2(step.x, 0.0)) - relief(0, uv - vec2(step.x, 0.0)),
        relief(0, uv + vec2(0.0, step.y)) - relief(0, uv - vec2(0.0, step.y)));
      float share = smoothstep(fades.x, fades.y, 1.0 - dot(slope * texels, along));
      if (share > 0.0) {
        float deep = enter(1, base, along, ranges.zw);
        colour = mix(colour, sharp(1, base + deep * along), share);
        s = mix(s, deep, share);
      }
      show(colour, s_of((z_of(s) - origin.z) / ray.z));
    }`;

  function say(text) {
    status.textContent = text;
  }

  function compile(kind, source) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    return shader;
  }

  function build() {
    program = gl.createProgram();
    gl.attachShader(program, compile(gl.VERTEX_SHADER, VERTEX));
    gl.attachShader(program, compile(gl.FRAGMENT_SHADER, HEAD + (scene.ranges_s ? SHEETS() : LAYERED())));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) || "no program");
    gl.useProgram(program);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
    places = {};
    for (const name of ["rotation", "origin", "view_tangent", "tangent", "inverse_range", "inverse_far", "shown",
                        "disparity", "colours", "shapes", "colour_map", "bins", "fades", "ranges"]) {
      places[name] = gl.getUniformLocation(program, name);
    }
    stack(0, images.colours, gl.RGB8, gl.RGB);
    stack(1, images.shapes, gl.RG8, gl.RG);
    gl.activeTexture(gl.TEXTURE2);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    const table = Uint8Array.from(atob(scene.colour_map), (letter) => letter.charCodeAt(0));
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, 256, 1, 0, gl.RGB, gl.UNSIGNED_BYTE, table);
    smooth(gl.TEXTURE_2D);
    ["colours", "shapes", "colour_map"].forEach((name, unit) => gl.uniform1i(places[name], unit));
    if (scene.ranges_s) {
      gl.uniform4fv(places.ranges, scene.ranges_s);
      gl.uniform2fv(places.fades, scene.fades);
    } else {
      const bins = scene.planes_s.flatMap((s, i) => [s, scene.low_s[i], scene.high_s[i] - scene.low_s[i], 0]);
      gl.uniform4fv(places.bins, bins);
    }
    const tangent = Math.tan(scene.fov_rad / 2);
    gl.uniform2f(places.tangent, tangent, tangent);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.enableVertexAttribArray(0);
    gl.vertexAttribIPointer(0, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(0, 1);
    gl.uniform1f(places.inverse_range, 1 / scene.near - 1 / scene.far);
    gl.uniform1f(places.inverse_far, 1 / scene.far);
    gl.uniform2f(places.shown, scene.shown[0], scene.shown[1]);
  }

  function stack(unit, pictures, inside, layout) {
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, gl.createTexture());
    gl.texStorage3D(gl.TEXTURE_2D_ARRAY, 1, inside, scene.width_px, scene.height_px, pictures.length);
    pictures.forEach((picture, i) => gl.texSubImage3D(
      gl.TEXTURE_2D_ARRAY, 0, 0, 0, i, scene.width_px, scene.height_px, 1, layout, gl.UNSIGNED_BYTE, picture));
    smooth(gl.TEXTURE_2D_ARRAY);
  }

  function smooth(kind) {
    gl.texParameteri(kind, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
    gl.texParameteri(kind, gl.TEXTURE_MAG_FILTER, gl.LINEAR);
    gl.texParameteri(kind, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(kind, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
  }

  function draw(width, height) {
    if (!gl || gl.isContextLost()) return;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    gl.viewport(0, 0, width, height);
    const cy = Math.cos(view.yaw), sy = Math.sin(view.yaw), cp = Math.cos(view.pitch), sp = Math.sin(view.pitch);
    const forward = [-sy * cp, sp, cy * cp];
    gl.uniformMatrix3fv(places.rotation, false, [cy, 0, sy, sy * sp, cp, -cy * sp, ...forward]);
    const r = scene.pivot_z;
    gl.uniform3f(places.origin, -r * forward[0], -r * forward[1], r - r * forward[2]);
    gl.uniform1f(places.view_tangent, Math.tan(scene.fov_rad / 2) / view.zoom);
    gl.uniform1i(places.disparity, view.disparity ? 1 : 0);
    gl.bufferData(gl.ARRAY_BUFFER, masks([cy, 0, sy, sy * sp, cp, -cy * sp, ...forward]), gl.DYNAMIC_DRAW);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, TILES * TILES);
  }

  // For each tile of the view, which layers have something there: a bit a layer. Along a ray the place in a layer moves
  // on a straight line as s grows, so the corners of a tile at a layer's lowest and highest s enclose all of it.
  function masks(rotation) {
    if (scene.ranges_s) return new Uint32Array(TILES * TILES);
    const tangent = Math.tan(scene.fov_rad / 2);
    const r = scene.pivot_z, half = Math.tan(scene.fov_rad / 2) / view.zoom, cells = scene.cells, count = cells * cells;
    const origin = [-r * rotation[6], -r * rotation[7], r - r * rotation[8]];
    const found = new Uint32Array(TILES * TILES);
    const cell = (value) => Math.min(cells - 1, Math.max(0, Math.floor((0.5 + 0.5 * value) * cells)));
    const layers = scene.planes_s.length;
    const corners = [];
    for (let i = 0; i < layers; ++i) {
      corners.push([scene.low_s[i], scene.high_s[i]].map((s) => {
        const z = 1 / (s * (1 / scene.near - 1 / scene.far) + 1 / scene.far);
        const grid = new Float64Array(2 * (TILES + 1) * (TILES + 1));
        for (let y = 0, at = 0; y <= TILES; ++y) {
          for (let x = 0; x <= TILES; ++x) {
            const u = ((2 * x) / TILES - 1) * half, v = ((2 * y) / TILES - 1) * half;
            const ray = [0, 1, 2].map((axis) => rotation[axis] * u + rotation[3 + axis] * v + rotation[6 + axis]);
            const t = (z - origin[2]) / ray[2];
            grid[at++] = (origin[0] + t * ray[0]) / (z * tangent);
            grid[at++] = (origin[1] + t * ray[1]) / (z * tangent);
          }
        }
        return grid;
      }));
    }
    for (let tile = 0; tile < found.length; ++tile) {
      const first = (tile % TILES) + Math.floor(tile / TILES) * (TILES + 1);
      for (let i = 0; i < layers; ++i) {
        let left = Infinity, right = -Infinity, top = Infinity, bottom = -Infinity;
        for (const grid of corners[i]) {
          for (const at of [first, first + 1, first + TILES + 1, first + TILES + 2]) {
            left = Math.min(left, grid[2 * at]);
            right = Math.max(right, grid[2 * at]);
            top = Math.min(top, grid[2 * at + 1]);
            bottom = Math.max(bottom, grid[2 * at + 1]);
          }
        }
        let most = 0, least = 2;
        for (let y = cell(top); y <= cell(bottom); ++y) {
          for (let x = cell(left); x <= cell(right); ++x) {
            const cover = scene.cover.charCodeAt(i * count + y * cells + x) - 48;
            most = Math.max(most, cover);
            least = Math.min(least, cover);
          }
        }
        if (most > 0) found[tile] |= 1 << i;
        if (least === 2) break; // nothing shows through
      }
    }
    return found;
  }

  function shownSize() {
    const dense = Math.max(canvas.clientWidth, canvas.clientHeight, 16) * (window.devicePixelRatio || 1);
    const longest = Math.max(16, Math.min(MAX_PX, dense) * (moving ? quality : 1));
    const shape = scene.width_px / scene.height_px;
    return shape >= 1
      ? [Math.round(longest), Math.max(1, Math.round(longest / shape))]
      : [Math.max(1, Math.round(longest * shape)), Math.round(longest)];
  }

  // While things move, pixels are given up for speed; half a second later the picture is drawn whole.
  let last = 0;
  function request(inMotion) {
    if (!gl) return;
    moving = inMotion;
    clearTimeout(settle);
    if (inMotion) settle = setTimeout(() => request(false), 500);
    if (pending) return;
    pending = true;
    requestAnimationFrame((now) => {
      pending = false;
      const took = now - last;
      last = now;
      if (moving && took < 1000) {
        if (took > SLOW_MS) quality = Math.max(0.3, quality * 0.9);
        else if (took < SLOW_MS / 2) quality = Math.min(1, quality * 1.02);
      }
      draw(...shownSize());
      if (swaying) {
        look(0.6 * BOUND_RAD * Math.sin(now / 1300), 0.25 * BOUND_RAD * Math.sin(now / 1900));
        request(true);
      }
    });
  }

  function look(yaw, pitch) {
    const excess = Math.hypot(yaw, pitch) / BOUND_RAD;
    view.yaw = Number.isFinite(yaw) ? yaw / Math.max(1, excess) : 0;
    view.pitch = Number.isFinite(pitch) ? pitch / Math.max(1, excess) : 0;
  }

  function turn(yaw, pitch) {
    swaying = false;
    look(view.yaw + yaw, view.pitch + pitch);
    request(true);
  }

  function reset() {
    swaying = false;
    tilt = tilt && {};
    view.zoom = scene.zoom;
    look(0, 0);
    request(false);
  }

  function toggleDisparity() {
    view.disparity = !view.disparity;
    document.getElementById("disparity").setAttribute("aria-pressed", String(view.disparity));
    request(false);
  }

  function zoom(factor) {
    swaying = false;
    view.zoom = Math.min(MAX_ZOOM, Math.max(1, view.zoom * factor));
    request(true);
  }

  function listen() {
    const fingers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const spread = () => {
        const [a, b] = [...fingers.values()];
        return Math.hypot(a[0] - b[0], a[1] - b[1]);
      };
      const apart = fingers.size === 2 ? spread() : 0;
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (fingers.size === 2) {
        if (apart > 0) zoom(spread() / apart);
        return;
      }
      // The scene follows the finger: across the whole picture from one bound to the other.
      const scale = (2 * BOUND_RAD) / Math.max(1, canvas.clientWidth) / view.zoom;
      turn(-(event.clientX - before[0]) * scale, (event.clientY - before[1]) * scale);
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => fingers.delete(event.pointerId));
    }
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * 0.0015));
    }, { passive: false });
    canvas.addEventListener("dblclick", reset);
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const actions = {
        ArrowLeft: () => turn(-KEY_STEP_RAD, 0),
        ArrowRight: () => turn(KEY_STEP_RAD, 0),
        ArrowUp: () => turn(0, KEY_STEP_RAD),
        ArrowDown: () => turn(0, -KEY_STEP_RAD),
        "+": () => zoom(1.1),
        "-": () => zoom(1 / 1.1),
        0: reset,
        d: toggleDisparity,
      };
      const action = actions[event.key] || actions[String(event.key).toLowerCase()];
      if (action) {
        event.preventDefault();
        action();
      }
    });
    document.getElementById("disparity").addEventListener("click", toggleDisparity);
    document.getElementById("reset").addEventListener("click", reset);
    const button = document.getElementById("tilt");
    const touch = window.matchMedia("(pointer: coarse)").matches;
    button.hidden = !(touch && "DeviceOrientationEvent" in window);
    button.addEventListener("click", async () => {
      if (tilt) {
        tilt = null;
      } else {
        // iOS asks the user, and only from within a tap.
        const ask = DeviceOrientationEvent.requestPermission;
        const answer = ask ? await ask.call(DeviceOrientationEvent).catch(() => "denied") : "granted";
        if (answer === "granted") tilt = {};
        else say("This device does not give its tilt away.");
      }
      button.setAttribute("aria-pressed", String(tilt !== null));
    });
    window.addEventListener("deviceorientation", (event) => {
      if (!tilt || event.beta === null || event.gamma === null) return;
      if (tilt.beta === undefined) tilt = { beta: event.beta, gamma: event.gamma };
      // Both are about the device's own axes: a device on its side has them turned.
      const held = (((screen.orientation && screen.orientation.angle) || 0) * Math.PI) / 180;
      const beta = event.beta - tilt.beta, gamma = event.gamma - tilt.gamma;
      // Half of the device's turn, so that the bound is reached at about 23 degrees.
      const scale = (0.5 * Math.PI) / 180;
      swaying = false;
      look(
        (gamma * Math.cos(held) + beta * Math.sin(held)) * scale,
        (gamma * Math.sin(held) - beta * Math.cos(held)) * scale);
      request(true);
    });
    window.addEventListener("resize", () => request(false));
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      frame.classList.remove("live");
      say("The graphics were interrupted: a still picture is shown.");
    });
    canvas.addEventListener("webglcontextrestored", () => {
      build();
      frame.classList.add("live");
      say("");
      request(false);
    });
  }

  async function decode(uri) {
    const picture = new Image();
    picture.src = uri;
    await picture.decode();
    return picture;
  }

  async function start() {
    canvas = document.createElement("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("aria-label", "3D scene; drag or use the arrow keys to look around");
    gl = canvas.getContext("webgl2", { alpha: false, antialias: false, preserveDrawingBuffer: true });
    if (!gl) {
      say("This browser has no WebGL 2: a still picture is shown.");
      return false;
    }
    const [colours, shapes] = await Promise.all([scene.colours, scene.shapes].map((uris) => Promise.all(uris.map(decode))));
    images = { colours, shapes };
    build();
    still.after(canvas);
    listen();
    frame.classList.add("live");
    say("");
    swaying = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    request(swaying);
    return true;
  }

  const ready = start().catch((error) => {
    gl = null;
    frame.classList.remove("live");
    say("The scene cannot be drawn here: a still picture is shown.");
    console.warn(String(error));
    return false;
  });

  // For pages that embed the viewer, and for tests.
  window.vq3d = {
    ready,
    view,
    look(yaw, pitch) {
      swaying = false;
      look(yaw, pitch);
      request(false);
    },
    // The view from (yaw, pitch) in radians as a PNG data URI.
    picture(yaw, pitch, width, height) {
      swaying = false;
      look(yaw, pitch);
      draw(width, height);
      return canvas.toDataURL("image/png");
    },
    // Frames a second at a size, each one drawn to its end.
    measure(frames, width, height) {
      swaying = false;
      const pixel = new Uint8Array(4);
      const begin = performance.now();
      for (let i = 0; i < frames; ++i) {
        look(BOUND_RAD * Math.sin(i), 0);
        draw(width, height);
        gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
      }
      return (1000 * frames) / (performance.now() - begin);
    },
  };
})();
