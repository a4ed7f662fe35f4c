// An offline queue of mutations: each is stored before it is sent, sent in order, and done once.
//
//   const store = inLocalStorage(`changes of ${userId}`)
//   const queue = await openQueue({ url, session, store, onDone, onRefused, onDropped })
//   const { id } = await queue.add(CREATE_TASK, { input: { title } }) // resolves when it is stored
//   addEventListener('online', queue.retryNow)
//   followTasks({ …, onChange: (change) => queue.isOwn(change) || notify(change) })
//
// A document has one mutation field with `$input`, and selects `errors { code field message }`. Changes of tasks also
// select `task { id version … }`. As `expectedVersion` give the version that the server told last, also to a second
// change before the answer to the first one. Inputs may carry `onConflict: MERGE`; then select `changeCursor` too.
//
// A store belongs to one person, because a mutationId does, and to one queue: tabs need a store each, or a
// SharedWorker. It holds inputs in clear text: no passwords.

import { codesOf } from './follow.mjs'

/**
 * @typedef {{ document: string, variables: { input: Record<string, any>, [name: string]: any }, madeAt: number }} Entry
 * @typedef {object} Store
 * @property {() => Entry[] | null | undefined | Promise<Entry[] | null | undefined>} load
 * @property {(entries: Entry[]) => void | Promise<void>} save  resolves when the entries survive a crash
 */

/** @type {(key: string) => Store} */
export const inLocalStorage = (key) => ({
  load: () => JSON.parse(localStorage.getItem(key) ?? '[]'),
  save: (entries) => localStorage.setItem(key, JSON.stringify(entries)),
})

const LATER = ['INTERNAL_SERVER_ERROR', 'RATE_LIMITED', 'UNAUTHENTICATED']
const MAX_ANSWERED = 1000

/**
 * A callback that throws does not stop the queue. After a crash, it may be called a second time for an entry.
 * @param {object} given
 * @param {string} given.url
 * @param {{ token(): Promise<string>, expired(): void }} given.session  of `session.mjs`
 * @param {Store} given.store
 * @param {(entry: Entry, payload: any) => void} [given.onDone]
 * @param {(entry: Entry, payload: any) => any} [given.onRefused]  `payload.errors` says why. An input that it returns
 *   is sent next, with a new mutationId: a merged change with `expectedVersion: payload.task.version`.
 * @param {(entry: Entry, errors: any[]) => void} [given.onDropped]  no repeat can mend it, or it is older than `maxAge`
 * @param {(error: unknown) => void} [given.onError]  of an attempt that is repeated, or of a callback
 * @param {number} [given.maxAge]  less than the server's TASKFLOW_MUTATION_RETENTION_DAYS: later repeats are done again
 * @param {number} [given.patience]  milliseconds that an answer may take
 * @param {number} [given.longestPause]  milliseconds between attempts
 */
export async function openQueue({
  url, session, store, onDone, onRefused, onDropped, onError,
  maxAge = 29 * 86_400_000, patience = 30_000, longestPause = 30_000,
}) {
  let entries = (await store.load()) ?? []
  let lastSave = Promise.resolve()
  let begin = () => {} // when there is nothing to send
  let wake = () => {} // in a pause
  const answered = new Set() // the mutationIds whose changes may still be on their way
  let isClosed = false
  let giveUp = () => {} // the request that is on its way

  // Saves do not overtake each other. `entries` holds only what is stored, so nothing is sent before it is.
  function keep(change) {
    const saved = lastSave.then(async () => {
      const next = change(entries)
      await store.save(next)
      entries = next
    })
    lastSave = saved.catch(() => {})
    return saved
  }

  async function add(document, variables) {
    const entry = makeEntry(document, JSON.parse(JSON.stringify(variables)))
    await keep((entries) => [...entries, entry])
    begin()
    return entry.variables.input
  }

  async function post({ document, variables }) {
    const Authorization = `Bearer ${await session.token()}`
    // Without a limit, fetch of Node 20 waits forever when a new connection is closed at once. AbortSignal.any is no
    // help there: the garbage collector may take its timeout.
    const control = new AbortController()
    giveUp = () => control.abort(new Error('The server does not answer'))
    if (isClosed) giveUp()
    const timer = setTimeout(giveUp, patience)
    try {
      const response = await fetch(url, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json', Authorization },
        body: JSON.stringify({ query: document, variables }),
        signal: control.signal,
      })
      // A proxy or a hotel's network may answer with anything.
      return { response, body: (await response.json().catch(() => null)) ?? {} }
    } finally {
      clearTimeout(timer)
    }
  }

  // The payload, or errors that no repeat can mend. Throws when it is worth a repeat.
  async function send(entry) {
    const { response, body } = await post(entry)
    const { data, errors } = body
    const codes = codesOf(errors ?? [])
    if (codes.includes('UNAUTHENTICATED') || response.status === 401) session.expired()
    const retryAfter = [errors ?? []].flat().map((error) => error?.extensions?.retryAfter).find(Boolean)
    // Each error of the server itself has a code.
    const isLater = response.status >= 500 || retryAfter || codes.some((code) => !code || LATER.includes(code))
    const payload = Object.values(data ?? {})[0]
    if (payload && !isLater) return { payload }
    if (codes.length && !isLater) return { errors }
    if (response.status === 413) return { errors: [{ message: 'The request is too long' }] }
    const wait = 1000 * (Number(retryAfter ?? response.headers.get('Retry-After')) || 0)
    throw Object.assign(new Error(`No answer: ${response.status} ${codes.join(' ')}`), { errors, wait })
  }

  async function told(callback, ...facts) {
    try {
      return await callback?.(...facts)
    } catch (error) {
      onError?.(error)
    }
  }

  async function settle(entry) {
    const isTooOld = Date.now() - entry.madeAt > maxAge
    const { payload, errors } = isTooOld ? { errors: [{ message: 'The server may have done it' }] } : await send(entry)
    const isRefused = payload?.errors?.length > 0
    const callback = isRefused ? onRefused : payload ? onDone : onDropped
    const { mutationId } = entry.variables.input
    if (payload && !isRefused) answered.add(mutationId)
    if (answered.size > MAX_ANSWERED) answered.delete(answered.values().next().value)
    const merged = await told(callback, entry, payload ?? errors)
    const next = isRefused && merged
      ? [makeEntry(entry.document, { ...entry.variables, input: { ...merged, mutationId: undefined } })]
      : []
    const follow = (other) => (isRefused ? other : rebased(other, entry, payload))
    // One save: after a crash before it, the repeat gets the same answer.
    await keep(([, ...others]) => [...next, ...others.map(follow)])
  }

  async function run() {
    let failures = 0
    while (!isClosed) {
      try {
        if (entries.length) await settle(entries[0])
        else await new Promise((resolve) => (begin = () => resolve(null)))
        failures = 0
      } catch (error) {
        if (isClosed) return
        onError?.(error)
        // At random, so that not all clients of a server that was away come back in the same moment.
        const pause = Math.min(500 * 2 ** failures++, longestPause) * (0.5 + Math.random() / 2)
        await new Promise((resolve) => {
          const timer = setTimeout(resolve, Math.max(pause, error?.wait ?? 0))
          wake = () => resolve(clearTimeout(timer))
        })
      }
    }
  }

  const running = run()
  return {
    add,
    entries: () => entries, // what the page shows as not yet sent
    isOwn: ({ mutationId }) =>
      answered.has(mutationId) || entries.some(({ variables }) => variables.input.mutationId === mutationId),
    retryNow: () => wake(),
    close() {
      isClosed = true
      giveUp()
      begin()
      wake()
      return running
    },
  }
}

/** @returns {Entry} */
function makeEntry(document, variables) {
  const { mutationId, id } = variables.input
  const own = /\bCreateTaskInput\b/.test(document) ? { id: id ?? uuid7() } : {}
  const input = { ...variables.input, ...own, mutationId: mutationId ?? uuid7() }
  return { document, variables: { ...variables, input }, madeAt: Date.now() }
}

// A later change of the same task was made on top of this one. If nobody else changed the task in between, that change
// expects the version that this one made. Otherwise it keeps what the person saw, and conflicts or is merged.
function rebased(entry, { variables }, payload) {
  const { id, expectedVersion: seen, onConflict } = variables.input
  const { input } = entry.variables
  const isNext = payload?.task?.version === seen + 1 && (onConflict !== 'MERGE' || payload.changeCursor)
  if (!isNext || input.id !== id || input.expectedVersion !== seen) return entry
  return { ...entry, variables: { ...entry.variables, input: { ...input, expectedVersion: seen + 1 } } }
}

/** A UUID of version 7, which begins with the time. */
export function uuid7() {
  const bytes = crypto.getRandomValues(new Uint8Array(10))
  bytes[0] = 0x70 | (bytes[0] & 0x0f)
  bytes[2] = 0x80 | (bytes[2] & 0x3f)
  const random = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')
  const digits = Date.now().toString(16).padStart(12, '0') + random
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
}
