// No library: queries by `fetch`, subscriptions as server-sent events.
//
//   const stop = followTasks({ ...overFetch({ url, session }), session, onTasks })

export function overFetch({ url, session, patience = 30_000 }) {
  const post = async (body, signal, accept) => {
    const Authorization = `Bearer ${await session.token()}`
    const headers = { Accept: accept, Authorization, 'Content-Type': 'application/json' }
    return fetch(url, { method: 'POST', headers, body: JSON.stringify(body), signal })
  }

  async function listen(body, sink, control) {
    // The server sends a comment every 15 seconds: when nothing comes for longer, the network is gone.
    const giveUp = () => control.abort(new Error('The server is silent'))
    let timer = setTimeout(giveUp, patience)
    try {
      const response = await post(body, control.signal, 'text/event-stream')
      if (!response.headers.get('Content-Type')?.startsWith('text/event-stream')) throw await response.json()
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
      let text = ''
      for (;;) {
        const { value, done } = await reader.read()
        if (done) throw new Error('The stream was cut')
        clearTimeout(timer)
        timer = setTimeout(giveUp, patience)
        const events = (text + value).split('\n\n')
        text = events.pop()
        for (const event of events) {
          if (/^event: complete$/m.test(event)) return
          const [, data] = /^data: (.*)$/m.exec(event) ?? []
          if (data) sink.next(JSON.parse(data))
        }
      }
    } finally {
      clearTimeout(timer)
      control.abort()
    }
  }

  return {
    async query(query, variables) {
      const response = await post({ query, variables }, undefined, 'application/json')
      const { data, errors } = await response.json()
      if (errors) throw errors
      return data
    },
    subscribe(query, variables, sink) {
      const control = new AbortController()
      listen({ query, variables }, sink, control).then(sink.complete, sink.error)
      return () => control.abort()
    },
  }
}
