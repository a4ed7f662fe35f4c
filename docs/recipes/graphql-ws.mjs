// graphql-ws alone: queries and subscriptions over one WebSocket.
//
//   const stop = followTasks({ ...overGraphqlWs(makeSocket({ url, session })), session, onTasks })

export const overGraphqlWs = (socket) => ({
  query: (query, variables) =>
    new Promise((resolve, reject) => {
      const next = ({ data, errors }) => (errors ? reject(errors) : resolve(data))
      const complete = () => reject(new Error('No answer'))
      socket.subscribe({ query, variables }, { next, error: reject, complete })
    }),
  subscribe: (query, variables, sink) => socket.subscribe({ query, variables }, sink),
})
