// The classifier as a server with the API of fastai-now: POST /analyze with a photo -> its classes.
//   PORT=8080 node server.mjs; curl -F file=@photo.jpg http://127.0.0.1:8080/analyze
import { randomUUID } from 'node:crypto'
import { createServer, STATUS_CODES } from 'node:http'
import process from 'node:process'
import busboy from 'busboy'
import { Classifier, decode, prove } from './classifier.mjs'

const MAX_BYTES = 10_000_000 // of a photo
const FORM_OVERHEAD = 64 * 1024 // of the form around it
const MAX_IN_FLIGHT = 16 // photos in memory at once

class Problem extends Error {
  constructor(status, code, detail, headers = {}) {
    super(detail)
    Object.assign(this, { status, code, headers })
  }
}

const classifier = await Classifier.open()
const proof = await prove(classifier)
if (!proof.agrees) {
  console.error(`THE PROOF FAILS: ${proof.flips} of ${proof.photos} photos, largest difference ${proof.worst}`)
  process.exit(1)
}
let inFlight = 0

const tooLarge = () => new Problem(413, 'payload-too-large', `The upload is larger than ${MAX_BYTES / 1e6} MB.`, {
  connection: 'close',
})

async function readBody(request, limit = MAX_BYTES + FORM_OVERHEAD) {
  const parts = []
  let size = 0
  for await (const part of request.iterator({ destroyOnReturn: false })) { // the refusal needs the socket
    size += part.length
    if (size > limit) throw tooLarge()
    parts.push(part)
  }
  return Buffer.concat(parts)
}

// The one photo of a request: the file of a form, the body itself, or base64 in JSON.
async function readPhoto(request) {
  if (Number(request.headers['content-length']) > MAX_BYTES + FORM_OVERHEAD) throw tooLarge()
  const kind = (request.headers['content-type'] ?? '').split(';')[0].trim().toLowerCase()
  if (kind === 'multipart/form-data') return readForm(request)
  if (kind === 'application/json') return fromJson(await readBody(request))
  if (kind.startsWith('image/') || kind === 'application/octet-stream') return readBody(request, MAX_BYTES)
  throw new Problem(415, 'unsupported-media-type', `The content type is '${kind.slice(0, 80)}'; multipart/form-data ` +
    'with a file, or image/* with the photo as the body, was expected: curl -F file=@photo.jpg')
}

async function readForm(request) {
  const body = await readBody(request)
  const files = []
  const limits = { parts: 20, fieldSize: 64 * 1024 }
  await new Promise((resolve, reject) => {
    const refuse = (code, detail) => reject(new Problem(400, code, detail))
    const malformed = error => refuse('malformed-multipart', `The body is not valid multipart/form-data: ${error.message}.`)
    try {
      busboy({ headers: request.headers, limits })
        .on('file', (_, stream) => {
          const parts = []
          files.push(parts)
          stream.on('data', part => parts.push(part)).on('error', malformed)
        })
        .on('field', (_, text, { valueTruncated }) => valueTruncated && refuse('field-too-large', 'A text field is too large.'))
        .on('partsLimit', () => refuse('too-many-parts', `The form has over ${limits.parts} parts.`))
        .on('error', malformed)
        .on('close', resolve)
        .end(body)
    } catch (error) {
      malformed(error)
    }
  })
  if (files.length === 0) throw new Problem(400, 'no-file', 'There is no file. In curl: -F file=@photo.jpg')
  if (files.length > 1) throw new Problem(400, 'too-many-files', 'There are several files; send one.')
  const file = Buffer.concat(files[0])
  if (file.length > MAX_BYTES) throw tooLarge()
  return file
}

function fromJson(body) {
  try {
    const { image, file, photo: other, ...others } = JSON.parse(body)
    const [text] = [image ?? file ?? other, ...Object.values(others)].filter(each => typeof each === 'string')
    const photo = Buffer.from(text.replace(/^data:[^,]*,/, ''), 'base64')
    if (photo.length > 0 || text === '') return photo
  } catch { /* not JSON, or without a text */ }
  throw new Problem(415, 'unsupported-media-type', 'The JSON has no photo; {"image": "..."} with base64 was expected.')
}

function asProblem(error) {
  if (error instanceof Problem) return error
  const text = error.message
  if (/unsupported image/i.test(text)) return new Problem(415, 'unrecognised-image', 'No picture was recognized.')
  if (/exceeds pixel limit/i.test(text)) return new Problem(422, 'image-too-large', 'The picture has too many pixels.')
  if (/premature|truncated|ended/i.test(text)) return new Problem(422, 'truncated-image', 'The picture is cut off.')
  return new Problem(422, 'corrupt-image', 'The picture is damaged and cannot be read whole.')
}

async function analyze(request) {
  if (inFlight >= MAX_IN_FLIGHT) {
    throw new Problem(503, 'overloaded', 'The queue is full; try again soon.', { 'retry-after': '1' })
  }
  inFlight += 1
  try {
    const photo = await readPhoto(request)
    if (photo.length === 0) throw new Problem(400, 'empty-file', 'The file is empty (0 bytes); send a picture.')
    const pixels = await decode(photo).catch((error) => { throw asProblem(error) })
    return await classifier.classify(pixels)
  } finally {
    inFlight -= 1
  }
}

const routes = {
  '/analyze': { POST: analyze },
  '/healthz': { GET: () => ({ status: 'ok' }) },
  '/readyz': { GET: () => ({ phase: 'ready', percent: 100 }) },
}

async function handle(request, response) {
  const id = randomUUID().replaceAll('-', '')
  const send = (status, type, value, headers = {}) => {
    response.writeHead(status, { 'content-type': type, 'x-request-id': id, 'x-content-type-options': 'nosniff', ...headers })
    response.end(JSON.stringify(value))
  }
  try {
    const methods = routes[request.url.split('?')[0]]
    if (!methods) throw new Problem(404, 'not-found', 'The server has nothing at this address.')
    const allow = Object.keys(methods).join(', ')
    const action = methods[request.method]
    if (!action) throw new Problem(405, 'method-not-allowed', `This address takes ${allow}.`, { allow })
    send(200, 'application/json', await action(request))
  } catch (error) {
    if (!(error instanceof Problem)) console.error(id, error)
    const { status = 500, code = 'internal', headers } = error
    const detail = status === 500 ? 'Internal server error. The log has the details under this request id.' : error.message
    const problem = { type: 'about:blank', title: STATUS_CODES[status], status, detail, code, request_id: id }
    send(status, 'application/problem+json', problem, headers)
  }
}

const server = createServer({ headersTimeout: 10_000, requestTimeout: 60_000 }, handle)
server.listen(Number(process.env.PORT ?? 8080), process.env.HOST ?? '127.0.0.1', () => {
  const { address, port } = server.address()
  console.log(`running on http://${address}:${port}`)
})
