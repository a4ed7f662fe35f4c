// Runs docs/recipes/queue.mjs as it stands, with a store in a file, and writes down what becomes of each mutation: one
// JSON object a line.
//
//   node queue.mjs '{"url": "http://…/graphql", "streamUrl": "http://…/graphql", "file": "/tmp/…", "token": "…", …}'
//
// A line on the standard input, `{"document": …, "input": {…}}`, is a mutation. Its end closes the queue.

import { existsSync, readFileSync } from 'node:fs'
import { rename, writeFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { overFetch } from '../../docs/recipes/fetch.mjs'
import { codesOf, followTasks } from '../../docs/recipes/follow.mjs'
import { openQueue } from '../../docs/recipes/queue.mjs'
import { makeSession } from '../../docs/recipes/session.mjs'
import { makeSignIn } from './sign_in.mjs'

const given = JSON.parse(process.argv[2])
const write = (kind, facts) => process.stdout.write(`${JSON.stringify({ kind, at: Date.now(), ...facts })}\n`)

const store = {
  load: () => (existsSync(given.file) ? JSON.parse(readFileSync(given.file, 'utf8')) : null),
  async save(entries) {
    await writeFile(`${given.file}.new`, JSON.stringify(entries))
    await rename(`${given.file}.new`, given.file)
  },
}

const nameOf = ({ document, variables }) => ({ field: /\{\s*(\w+)/.exec(document)[1], input: variables.input })

const session = makeSession(makeSignIn(given, write))
const queue = await openQueue({
  url: given.url,
  session,
  store,
  patience: given.patience,
  longestPause: 500,
  onDone: (entry, { replayed, task }) => write('done', { ...nameOf(entry), replayed, task }),
  onRefused(entry, { errors, task }) {
    write('refused', { ...nameOf(entry), codes: errors.map(({ code }) => code), task })
    if (entry.variables.input.title === 'Throw') throw new Error('A callback that throws')
    if (errors[0].code === 'VERSION_CONFLICT') return { ...entry.variables.input, expectedVersion: task.version }
  },
  onDropped: (entry, errors) => write('dropped', { ...nameOf(entry), codes: codesOf(errors) }),
  onError: (error) => write('error', { text: String(error?.message ?? error), codes: codesOf(error) }),
})
write('opened', { waiting: queue.entries().length })

const stop = given.streamUrl
  ? followTasks({
      ...overFetch({ url: given.streamUrl, session }),
      session,
      longestPause: 500,
      onTasks: () => write('following'),
      onChange: (change) => write('told', { mutationId: change.mutationId, isOwn: queue.isOwn(change) }),
    })
  : () => {}

createInterface({ input: process.stdin })
  .on('line', async (line) => {
    const { document, input } = JSON.parse(line)
    const stored = await queue.add(document, { input })
    write('added', nameOf({ document, variables: { input: stored } }))
  })
  .on('close', async () => {
    stop()
    await queue.close()
    write('closed')
  })
