// A list of tasks that stays as the server has it: read once, then changed by what the server tells.
//
// `query` and `subscribe` come from the file of your client. Returns a function that ends it.

// What your pages show. `id` and `version` have to be there.
export const TASK = 'id version title status priority dueDate assignee { id fullName }'

export const LIST = `query List($filter: TaskFilter, $after: String) {
  tasks(first: 100, filter: $filter, after: $after) {
    changesCursor
    nodes { ${TASK} }
    pageInfo { hasNextPage endCursor }
  }
}`

export const CHANGES = `subscription Changes($filter: TaskFilter, $after: String) {
  taskChanged(filter: $filter, after: $after) { cursor kind taskId mutationId task { ${TASK} } previous { version } }
}`

const QUERY_PATIENCE = 30_000

export function followTasks({
  query, subscribe, session, filter = null, onTasks, onChange, onError, longestPause = 30_000,
}) {
  let tasks = new Map()
  let cursor = null // of the last change that `tasks` has; null: read the list first
  let failures = 0 // since the last good news
  let hasStopped = false
  let stop = () => {}

  async function readList() {
    const read = new Map()
    let first
    let page
    do {
      page = (await inTime(query(LIST, { filter, after: page?.pageInfo.endCursor ?? null }))).tasks
      // What changes while the other pages are read comes after the first page's cursor, and then `version` decides.
      first ??= page
      for (const task of page.nodes) read.set(task.id, task)
    } while (page.pageInfo.hasNextPage)
    if (hasStopped) return
    tasks = read
    cursor = first.changesCursor
    onTasks([...tasks.values()])
  }

  function apply(change) {
    cursor = change.cursor
    failures = 0
    // The one that the change made. What is in the list may be newer: see `readList`.
    const version = change.task ? change.task.version : change.previous.version + 1
    if (tasks.get(change.taskId)?.version >= version) return
    if (change.task) tasks.set(change.taskId, change.task)
    else tasks.delete(change.taskId)
    onChange?.(change)
    onTasks([...tasks.values()])
  }

  function listen() {
    return new Promise((resolve, reject) => {
      stop = subscribe(CHANGES, { filter, after: cursor }, {
        next: ({ data, errors }) => (errors ? reject(errors) : apply(data.taskChanged)),
        error: reject,
        complete: resolve,
      })
    })
  }

  async function run() {
    while (!hasStopped) {
      const begun = Date.now()
      try {
        if (cursor === null) await readList()
        if (!hasStopped) await listen()
      } catch (error) {
        const codes = codesOf(error)
        if (codes.includes('UNAUTHENTICATED')) session.expired()
        // The list was read with the same filter, so what is bad is the cursor: too old, or of another database.
        if (codes.includes('CURSOR_EXPIRED') || codes.includes('BAD_USER_INPUT')) cursor = null
        if (!hasStopped) onError?.(error)
      }
      stop()
      if (Date.now() - begun > 10_000) failures = 0
      // At random, so that not all clients of a server that was away come back in the same moment.
      if (!hasStopped) await sleep(Math.min(500 * 2 ** failures++, longestPause) * (0.5 + Math.random() / 2))
    }
  }

  run()
  return () => {
    hasStopped = true
    stop()
  }
}

// What was thrown is a list of GraphQL errors, or holds one, or is about the network.
export const codesOf = (error) =>
  [error].flat().flatMap((each) => each?.graphQLErrors ?? each?.errors ?? each).map((each) => each?.extensions?.code)

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))

function inTime(promise) {
  let timer
  const tooLate = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error('The server does not answer')), QUERY_PATIENCE)
  })
  return Promise.race([promise, tooLate]).finally(() => clearTimeout(timer))
}
