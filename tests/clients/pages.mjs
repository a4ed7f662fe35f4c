// Reads two pages of a list into a normalised cache while somebody changes the first one, subscribes from the merged
// list's `changesCursor`, and writes the list as the cache has it then: one JSON object.
//
//   node pages.mjs '{"cache": "relay", "url": "http://…/graphql", "token": "…", "artifacts": "/tmp/…"}'

import { createRequire } from 'node:module'

const RECIPES = new URL('../../docs/recipes/', import.meta.url)
const given = JSON.parse(process.argv[2])
const require = createRequire(RECIPES)
const recipe = (name) => import(new URL(`${name}.mjs`, RECIPES))

// Browsers have one, Node from version 22 on.
globalThis.WebSocket = require('ws')

const TASK = 'id title version'
const PAGE = `query Page($after: String) {
  tasks(first: 3, after: $after) {
    changesCursor
    edges { cursor node { ${TASK} } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}`
const CHANGES = `subscription Changes($after: String) {
  taskChanged(after: $after) { cursor kind taskId task { ${TASK} status priority dueDate assignee { id fullName } } }
}`

const session = (await recipe('session')).makeSession(async () => given.token)
const options = { url: given.url, session }

const CACHES = {
  async apollo() {
    const { makeClient, overApollo, intoCache } = await recipe('apollo')
    const { makeCache } = await recipe('apollo-pages')
    const client = makeClient({ ...options, cache: makeCache() })
    const { query, subscribe } = overApollo(client)
    const { gql } = require('@apollo/client')
    return {
      readPage: (after) => query(PAGE, { after }),
      merged: () => client.readQuery({ query: gql(PAGE), variables: { after: null } }),
      subscribe: (after, onChange) =>
        subscribe(CHANGES, { after }, {
          next({ data }) {
            intoCache(client)(data.taskChanged)
            onChange(data.taskChanged)
          },
          error: fail,
          complete: fail,
        }),
    }
  },

  async urql() {
    const { makeClient, overUrql } = await recipe('urql')
    const { makeCache } = await recipe('urql-pages')
    const client = makeClient({ ...options, cache: makeCache() })
    const { query, subscribe } = overUrql(client)
    let last = null
    return {
      readPage: (after) => query(PAGE, { after: (last = after) }),
      merged: () => client.readQuery(PAGE, { after: last }).data,
      subscribe: (after, onChange) =>
        subscribe(CHANGES, { after }, {
          next: ({ data }) => onChange(data.taskChanged),
          error: fail,
          complete: fail,
        }),
    }
  },

  // Its documents are compiled: tests/clients/test_pages.py has them.
  async relay() {
    const relay = require('relay-runtime')
    const compiled = (name) => require(`${given.artifacts}/${name}.graphql.js`)
    const { query, subscribe } = (await recipe('fetch')).overFetch(options)
    const network = relay.Network.create(
      async ({ text }, variables) => ({ data: await query(text, variables) }),
      ({ text }, variables) => relay.Observable.create((sink) => subscribe(text, variables, sink)),
    )
    const environment = new relay.Environment({ network, store: new relay.Store(new relay.RecordSource()) })
    const page = (after) => relay.createOperationDescriptor(compiled('PageQuery'), { after })
    // What a component does that shows the list: the garbage collector leaves it alone.
    environment.retain(page(null))
    return {
      readPage: (after) => relay.fetchQuery(environment, compiled('PageQuery'), { after }).toPromise(),
      merged: () => environment.lookup(page(null).fragment).data,
      subscribe(after, onChange) {
        const { dispose } = relay.requestSubscription(environment, {
          subscription: compiled('ChangesSubscription'),
          variables: { after },
          onNext: ({ taskChanged }) => onChange(taskChanged),
          onError: fail,
        })
        return dispose
      },
    }
  },
}

let isDone = false
function fail(error) {
  // urql says so too when it is told to stop.
  if (isDone) return
  console.error('The stream ended', error)
  process.exit(1)
}

async function post(query, variables) {
  const response = await fetch(given.url, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${given.token}` },
    body: JSON.stringify({ query, variables }),
  })
  return (await response.json()).data
}

const rename = (id, title) =>
  post('mutation ($input: UpdateTaskInput!) { updateTask(input: $input) { errors { code } } }', { input: { id, title } })

const cache = await CACHES[given.cache]()
await cache.readPage(null)
const first = cache.merged().tasks
await rename(first.edges[0].node.id, 'Changed between the pages')
// Answered when the change has its place in the stream, so that the second page is read after it.
await post('query ($after: String!) { taskChanges(after: $after) { nodes { kind } } }', { after: first.changesCursor })
await cache.readPage(first.pageInfo.endCursor)
const both = cache.merged().tasks
const last = both.edges.at(-1).node.id
await new Promise((resolve) => {
  const stop = cache.subscribe(both.changesCursor, ({ taskId }) => {
    if (taskId !== last) return
    isDone = true
    stop()
    resolve()
  })
  rename(last, 'Changed after the pages')
})
// What the last change did is in the cache when those who heard of it have had their turn.
await new Promise((resolve) => setImmediate(resolve))
const tasks = cache.merged().tasks.edges.map(({ node: { id, title, version } }) => ({ id, title, version }))
process.stdout.write(JSON.stringify({ cursors: [first.changesCursor, both.changesCursor], tasks }))
process.exit(0)
