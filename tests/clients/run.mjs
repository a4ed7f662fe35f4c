// Runs a recipe as it stands, and writes down what it hears and does: one JSON object a line.
//
//   node run.mjs '{"recipe": "urql", "url": "http://…/graphql", "filters": {"everything": null}, …}'
//
// A line on the standard input asks for the lists as the recipe has them. Its end stops the recipe, and Node ends when
// nothing is left to wait for.

import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { makeSignIn } from './sign_in.mjs'

const RECIPES = new URL('../../docs/recipes/', import.meta.url)
const given = JSON.parse(process.argv[2])

const write = (kind, facts) => process.stdout.write(`${JSON.stringify({ kind, ...facts })}\n`)

const describe = (error) => {
  const words = [error].flat().map((each) => [each?.code ?? each?.name, each?.message ?? each?.reason])
  return words.flat().filter(Boolean).join(' ')
}

// Browsers have one, Node from version 22 on.
class NotedWebSocket extends createRequire(RECIPES)('ws') {
  constructor(...options) {
    super(...options)
    // In a browser an error that nobody listens to is none.
    this.on('error', () => {})
    this.on('close', (code) => write('closed', { code }))
  }
}
globalThis.WebSocket = NotedWebSocket

const recipe = (name) => import(new URL(`${name}.mjs`, RECIPES))

const { makeSession } = await recipe('session')
const session = makeSession(makeSignIn(given, write))
const options = { url: given.url, session, patience: given.patience }

const connect = {
  'graphql-ws': async () => {
    const { makeSocket } = await recipe('socket')
    return (await recipe('graphql-ws')).overGraphqlWs(makeSocket(options))
  },
  urql: async () => {
    const { makeClient, overUrql } = await recipe('urql')
    return overUrql(makeClient(options))
  },
  apollo: async () => {
    const { makeClient, ...rest } = await recipe('apollo')
    return withCache(makeClient(options), rest)
  },
  'apollo over http': async () => {
    const { makeHttpClient, ...rest } = await recipe('apollo')
    return withCache(makeHttpClient(options), rest)
  },
  fetch: async () => (await recipe('fetch')).overFetch(options),
  'graphql-sse': async () => {
    const { makeClient, overGraphqlSse } = await recipe('graphql-sse')
    return overGraphqlSse(makeClient(options))
  },
}

function withCache(client, { overApollo, intoCache }) {
  const cached = (id) => client.cache.extract()[`Task:${id}`]?.version ?? null
  return { ...overApollo(client), onChange: intoCache(client), cached }
}

const { followTasks } = await recipe('follow')
const { query, subscribe, onChange, cached } = await connect[given.recipe]()
const lists = {}
const stops = Object.entries(given.filters).map(([filter, value]) =>
  followTasks({
    filter: value,
    session,
    longestPause: given.longestPause,
    async query(document, variables) {
      const data = await query(document, variables)
      const { changesCursor, nodes, pageInfo } = data.tasks
      const ids = nodes.map(({ id }) => id)
      const place = { isFirst: variables.after === null, isLast: !pageInfo.hasNextPage }
      write('page', { filter, cursor: changesCursor, ids, ...place })
      return data
    },
    subscribe(document, variables, sink) {
      write('subscribe', { filter })
      return subscribe(document, variables, {
        ...sink,
        next(result) {
          const change = result.data?.taskChanged
          if (change) write('told', { filter, change })
          sink.next(result)
        },
        complete() {
          write('complete', { filter })
          sink.complete()
        },
      })
    },
    onTasks: (tasks) => (lists[filter] = tasks),
    onChange(change) {
      const version = change.task?.version ?? change.previous.version + 1
      write('applied', { filter, taskId: change.taskId, version })
      onChange?.(change)
    },
    onError: (error) => write('error', { filter, text: describe(error) }),
  }),
)

createInterface({ input: process.stdin })
  .on('line', () => {
    for (const [filter, tasks] of Object.entries(lists)) {
      write('list', { filter, tasks, cached: cached ? tasks.map((task) => cached(task.id)) : null })
    }
  })
  .on('close', () => stops.forEach((stop) => stop()))
