(() => {
const root = [...document.querySelectorAll('#@ID')].find(o => !o.dataset.made), data = @DATA      // the same may be shown twice
root.dataset.made = 1
const floats = text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer)
const part = o => Object.fromEntries(Object.entries(o).map(([k, v]) => [k, typeof v === 'string' ? floats(v) : v]))
const net = {...part(data.net), blocks: data.net.blocks.map(part), attention: data.net.attention && part(data.net.attention)}

// A map is {c, n, v}: c channels of n x n values.
const norm = (x, s, t, k) => {                       // batch norm of class k, then ReLU
  const v = new Float32Array(x.v.length), area = x.n*x.n
  for (let i = 0; i < v.length; i++) { const c = k*x.c + Math.floor(i/area); v[i] = Math.max(0, x.v[i]*s[c] + t[c]) }
  return {...x, v}
}
const twice = x => {                                 // nearest neighbour
  const n = 2*x.n, v = new Float32Array(x.c*n*n)
  for (let c = 0; c < x.c; c++) for (let r = 0; r < n; r++) for (let s = 0; s < n; s++)
    v[(c*n + r)*n + s] = x.v[(c*x.n + (r >> 1))*x.n + (s >> 1)]
  return {c: x.c, n, v}
}
const conv = (x, w, b, out, size) => {               // size 1 or 3, zeros around
  const n = x.n, area = n*n, half = size >> 1, v = new Float32Array(out*area)
  for (let o = 0; o < out; o++) {
    const to = v.subarray(o*area, (o + 1)*area).fill(b ? b[o] : 0)
    for (let c = 0; c < x.c; c++) for (let i = 0; i < size*size; i++) {
      const weight = w[(o*x.c + c)*size*size + i], down = Math.floor(i/size) - half, right = i % size - half
      for (let r = Math.max(0, -down); r < Math.min(n, n - down); r++)
        for (let s = Math.max(0, -right), end = Math.min(n, n - right), from = c*area + (r + down)*n + right; s < end; s++)
          to[r*n + s] += weight*x.v[from + s]
    }
  }
  return {c: out, n, v}
}
const pooled = x => {                                // maximum of 2x2
  const n = x.n/2, v = new Float32Array(x.c*n*n)
  for (let c = 0; c < x.c; c++) for (let r = 0; r < n; r++) for (let s = 0; s < n; s++) {
    const at = (c*x.n + 2*r)*x.n + 2*s
    v[(c*n + r)*n + s] = Math.max(x.v[at], x.v[at + 1], x.v[at + x.n], x.v[at + x.n + 1])
  }
  return {c: x.c, n, v}
}
const row = (q, k, j) => {                           // the weights of location j over the keys
  const M = k.n*k.n, N = q.n*q.n, s = new Float64Array(M)
  let top = -Infinity, sum = 0
  for (let i = 0; i < M; i++) {
    for (let c = 0; c < q.c; c++) s[i] += q.v[c*N + j]*k.v[c*M + i]
    top = Math.max(top, s[i])
  }
  for (let i = 0; i < M; i++) sum += s[i] = Math.exp(s[i] - top)
  return s.map(v => v/sum)
}
const attend = (x, a) => {
  const pool = a.pool ? pooled : t => t, q = conv(x, a.g, null, a.narrow, 1)
  const k = pool(conv(x, a.f, null, a.narrow, 1)), h = pool(conv(x, a.h, null, a.value, 1))
  const N = x.n*x.n, M = h.n*h.n, v = new Float32Array(h.c*N)
  for (let j = 0; j < N; j++) {
    const beta = row(q, k, j)
    for (let c = 0; c < h.c; c++) { let sum = 0; for (let i = 0; i < M; i++) sum += beta[i]*h.v[c*M + i]; v[c*N + j] = sum }
  }
  let o = {c: h.c, n: x.n, v}
  if (a.v) o = conv(o, a.v, null, x.c, 1)
  return {x: {...x, v: x.v.map((t, i) => t + a.gamma*o.v[i])}, q, k}
}
const generate = (z, k) => {
  let x = {c: net.first, n: 4, v: conv({c: z.length, n: 1, v: z}, net.linear, net.bias, 16*net.first, 1).v}, seen = null
  for (const b of net.blocks) {
    const s = conv(twice(x), b.ws, b.bs, b.c, 1), h = conv(twice(norm(x, b.s1, b.t1, k)), b.w1, b.b1, b.c, 3)
    const r = conv(norm(h, b.s2, b.t2, k), b.w2, b.b2, b.c, 3)
    x = {...r, v: r.v.map((t, i) => t + s.v[i])}
    if (b.attention) { seen = attend(x, net.attention); x = seen.x }
  }
  const out = conv(norm(x, net.s, net.t, 0), net.w, net.b, 3, 3)
  return {rgb: out.v.map(Math.tanh), n: out.n, seen}
}
// from one noise to another along the great circle, as in chapter 15
const between = t => {
  const a = net.from, b = net.to, size = v => Math.sqrt(v.reduce((s, o) => s + o*o, 0))
  const w = Math.acos(a.reduce((s, o, i) => s + o*b[i], 0)/(size(a)*size(b)))
  return a.map((o, i) => (Math.sin((1 - t)*w)*o + Math.sin(t*w)*b[i])/Math.sin(w))
}

root.querySelector('.static').hidden = true
const box = root.querySelector('.live'), [left, right] = box.querySelectorAll('canvas'), [t, k] = box.querySelectorAll('input, select')
const told = box.querySelector('output')
let made, at = data.at || [data.res >> 2, data.res >> 2]
const heat = data.colors.map(o => o.match(/[0-9a-f]{2}/g).map(h => parseInt(h, 16)))
const paint = (canvas, colour) => {                  // colour of pixel (r, c), and a dot on the chosen one
  const n = made.n, image = new ImageData(n, n), small = document.createElement('canvas'), pen = canvas.getContext('2d')
  for (let i = 0; i < n*n; i++) image.data.set([...colour(Math.floor(i/n), i % n), 255], 4*i)
  small.width = small.height = n
  small.getContext('2d').putImageData(image, 0, 0)
  const side = canvas.width = canvas.height = 320
  pen.imageSmoothingEnabled = false
  pen.drawImage(small, 0, 0, side, side)
  pen.beginPath(); pen.arc((at[1] + .5)*side/n, (at[0] + .5)*side/n, 7, 0, 7)
  pen.fillStyle = '#E69F00'; pen.fill()
  pen.lineWidth = 2; pen.strokeStyle = '#fff'; pen.stroke()
}
const look = () => {
  const rgb = (r, c) => [0, 1, 2].map(k => Math.round((made.rgb[(k*made.n + r)*made.n + c] + 1)*127.5))
  paint(left, rgb)
  right.hidden = !made.seen
  if (!made.seen) return
  const n = made.seen.q.n, step = made.n/n, j = Math.floor(at[0]/step)*n + Math.floor(at[1]/step)
  const beta = row(made.seen.q, made.seen.k, j), top = Math.max(...beta), m = made.seen.k.n, best = beta.indexOf(top)
  paint(right, (r, c) => {                           // the weights over the picture in grey
    const share = beta[Math.floor(r*m/made.n)*m + Math.floor(c*m/made.n)]/top, grey = .2*rgb(r, c).reduce((a, b) => a + b)
    return heat[Math.round(255*share)].map(v => (.25 + .75*share)*v + .75*(1 - share)*grey)
  })
  const place = [Math.floor(best/m), best % m].map(v => Math.floor((v + .5)*made.n/m))
  told.value = `pixel ${at} looks most at ${place}: ${(100*top).toFixed(0)} % of its attention`
}
const draw = () => { made = generate(between(+t.value), +k.value); look() }
const move = (r, c) => { at = [r, c].map(v => Math.max(0, Math.min(data.res - 1, v))); look() }
t.addEventListener('input', draw)
k.addEventListener('change', draw)
left.addEventListener('click', e => {
  const place = left.getBoundingClientRect()
  move(...[(e.clientY - place.top)/place.height, (e.clientX - place.left)/place.width].map(v => Math.floor(v*data.res)))
})
left.addEventListener('keydown', e => {
  const by = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[e.key]
  if (by) { e.preventDefault(); e.stopPropagation(); move(at[0] + by[0], at[1] + by[1]) }
})
box.hidden = false
draw()
root.live = {generate: (u, c) => Array.from(generate(between(u), c).rgb), row: (r, c) => Array.from(row(made.seen.q, made.seen.k, r*made.seen.q.n + c)), at: () => at}
})()
