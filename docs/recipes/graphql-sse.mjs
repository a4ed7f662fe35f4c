// graphql-sse: queries and subscriptions as server-sent events.
//
//   const stop = followTasks({ ...overGraphqlSse(makeClient({ url, session })), session, onTasks })

import { createClient } from 'graphql-sse'

export const makeClient = ({ url, session }) =>
  createClient({
    url,
    headers: async () => ({ Authorization: `Bearer ${await session.token()}` }),
    // `followTasks` comes back with the last cursor. graphql-sse would come back with the first one.
    retryAttempts: 0,
  })

export const overGraphqlSse = (client) => ({
  query: (query, variables) =>
    new Promise((resolve, reject) => {
      const next = ({ data, errors }) => (errors ? reject(errors) : resolve(data))
      const complete = () => reject(new Error('No answer'))
      client.subscribe({ query, variables }, { next, error: reject, complete })
    }),
  subscribe: (query, variables, sink) => client.subscribe({ query, variables }, sink),
})
