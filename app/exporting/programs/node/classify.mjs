// The classifier on the command line.
//
//   node classify.mjs                 replay the proof: are the answers right here?
//   node classify.mjs PHOTO...        print the likeliest class of each photo
//   node classify.mjs --json PHOTO... print all probabilities, a line for each photo
import { readFile } from 'node:fs/promises'
import process from 'node:process'
import { parseArgs } from 'node:util'
import { Classifier, decode, prove } from './classifier.mjs'

const { values, positionals } = parseArgs({ options: { json: { type: 'boolean' } }, allowPositionals: true })
const classifier = await Classifier.open()

if (positionals.length === 0) {
  const { agrees, photos, flips, worst } = await prove(classifier)
  console.log(
    `${agrees ? 'The proof holds' : 'THE PROOF FAILS'}: ${photos} photos, ${flips} of another class, ` +
    `largest difference ${worst.toFixed(6)}`,
  )
  process.exitCode = agrees ? 0 : 1
}

for (const file of positionals) {
  try {
    const answer = await classifier.classify(await decode(await readFile(file)))
    console.log(values.json
      ? JSON.stringify({ file, ...answer })
      : `${file}: ${answer.result} (${(100 * answer.confidence).toFixed(1)}%)`)
  } catch (error) {
    console.error(`${file}: ${error.message}`)
    process.exitCode = 1
  }
}
