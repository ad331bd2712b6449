// The classifier as a library. `model.onnx` takes the pixels of a photo and does everything else itself.
//
//   import { Classifier, decode } from './classifier.mjs'
//   const classifier = await Classifier.open()
//   const { result, confidence } = await classifier.classify(await decode(bytes))
import { readFile } from 'node:fs/promises'
import * as ort from 'onnxruntime-node'
import sharp from 'sharp'

const ROOT = new URL('../', import.meta.url)
const MAX_PIXELS = 50_000_000

export const manifest = JSON.parse(await readFile(new URL('manifest.json', ROOT), 'utf8'))

export class Classifier {
  #session

  constructor(session) {
    this.#session = session
  }

  static async open(file = new URL('model.onnx', ROOT)) {
    return new Classifier(await ort.InferenceSession.create(await readFile(file)))
  }

  // What the model answers: the classes, and their probabilities in the same order.
  // `data` is RGB or RGBA, row by row.
  async run({ data, width, height }) {
    const image = new ort.Tensor('uint8', data, [height, width, data.length / (width * height)])
    const { classes, probabilities } = await this.#session.run({ image })
    return { classes: [...classes.data], probabilities: [...probabilities.data] }
  }

  // The answer that the server gives: all classes, the likeliest first.
  async classify(pixels) {
    const { classes, probabilities } = await this.run(pixels)
    const predictions = classes
      .map((label, index) => ({ label, score: Math.min(probabilities[index], 1) }))
      .sort((a, b) => b.score - a.score)
    const [{ label, score }] = predictions
    const result = manifest.multi_label
      ? predictions.filter(each => each.score >= manifest.threshold).map(each => each.label).join(';')
      : label
    return { result, confidence: score, familiarity: null, unsure: score < manifest.unsure_below, predictions }
  }
}

// A photo's pixels. Alpha is dropped and not blended, and color profiles are ignored, as in the notebook.
export async function decode(bytes) {
  if (bytes.subarray(0, 2).toString() === 'P6') return decodePpm(bytes)
  const photo = sharp(bytes, { limitInputPixels: MAX_PIXELS })
  if (manifest.exif === 'turn') photo.autoOrient()
  const { data, info } = await photo.toColourspace('srgb').removeAlpha().raw().toBuffer({ resolveWithObject: true })
  return { data, width: info.width, height: info.height }
}

function decodePpm(bytes) {
  const [head, width, height] = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.subarray(0, 40).toString('latin1'))
  return { data: bytes.subarray(head.length), width: Number(width), height: Number(height) }
}

// Compare the answers to the photos in proof/ with the right ones.
export async function prove(classifier) {
  const [header, ...rows] = (await readFile(new URL('proof/answers.tsv', ROOT), 'utf8')).trimEnd().split('\n')
  const likeliest = numbers => numbers.indexOf(Math.max(...numbers))
  let worst = 0
  let flips = 0
  for (const row of rows) {
    const [name, ...texts] = row.split('\t')
    const expected = texts.map(Number)
    const found = await classifier.run(await decode(await readFile(new URL(`proof/${name}`, ROOT))))
    const differences = expected.map((number, index) => Math.abs(number - found.probabilities[index]))
    const sameNames = ['photo', ...found.classes].join('\t') === header
    worst = Math.max(worst, ...differences)
    flips += !sameNames || likeliest(expected) !== likeliest(found.probabilities)
  }
  return { agrees: rows.length > 0 && flips === 0 && worst <= manifest.tolerance, photos: rows.length, flips, worst }
}
