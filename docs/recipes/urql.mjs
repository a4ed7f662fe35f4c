// urql: queries and mutations over HTTP, subscriptions over a WebSocket.
//
//   const stop = followTasks({ ...overUrql(makeClient({ url, session })), session, onTasks })

import { Client, cacheExchange, fetchExchange, subscriptionExchange } from '@urql/core'
import { onEnd, pipe, subscribe } from 'wonka'
import { makeSocket } from './socket.mjs'

// `cache`: one that merges pages is in `urql-pages.mjs`.
export function makeClient({ url, session, patience, cache = cacheExchange }) {
  const socket = makeSocket({ url, session, patience })
  return new Client({
    url,
    fetch: async (address, options) => {
      const Authorization = `Bearer ${await session.token()}`
      return fetch(address, { ...options, headers: { ...options.headers, Authorization } })
    },
    exchanges: [
      cache,
      fetchExchange,
      subscriptionExchange({
        forwardSubscription: (request) => ({
          subscribe: (sink) => ({ unsubscribe: socket.subscribe(request, sink) }),
        }),
      }),
    ],
  })
}

export const overUrql = (client) => ({
  async query(query, variables) {
    // From the cache it would be the list and the cursor of the first time.
    const { data, error } = await client.query(query, variables, { requestPolicy: 'network-only' })
    if (error) throw error
    return data
  },
  subscribe(query, variables, sink) {
    // A socket that closes and a refused cursor are both a result with an error; after the latter urql would wait on.
    const hear = ({ data, error }) => (error ? sink.error(error) : sink.next({ data }))
    return pipe(client.subscription(query, variables), onEnd(sink.complete), subscribe(hear)).unsubscribe
  },
})
