"use strict";

const WELCOME = `# Welcome to TaskFlow GQL.
#
# 1. Put the cursor into Register and press
#    Ctrl+Enter (⌘+Enter on a Mac).
# 2. Copy accessToken from the answer into the
#    Headers pane below, behind "Bearer ".
# 3. Run Watch. In a second window, with the same
#    headers, run CreateTask: the task arrives here.
#
# Login gets the next token when this one ends.
# Ctrl+Space completes; the book icon on the left
# explains every type and field.

mutation Register {
  register(input: {
    username: "ada"
    email: "ada@example.com"
    fullName: "Ada Lovelace"
    password: "correct horse battery"
  }) {
    accessToken
    errors { field message }
  }
}

mutation Login {
  login(input: { usernameOrEmail: "ada", password: "correct horse battery" }) {
    accessToken
    errors { message }
  }
}

query Me {
  me { username fullName role }
  tasks(first: 10) {
    totalCount
    edges { node { id title status priority } }
  }
}

mutation CreateTask {
  createTask(input: { title: "Try the live stream", priority: HIGH }) {
    task { id title version }
    errors { field message }
  }
}

subscription Watch {
  taskChanged {
    kind
    task { title status priority }
    actor { username }
    occurredAt
  }
}
`;

const HEADERS = `{
  "Authorization": "Bearer "
}`;

const FORBIDDEN = 4403;
const REFUSED = "The server refused the token in the Headers pane. Login gets a new one.";

const httpUrl = new URL(location.pathname, location.href);
const socketUrl = new URL(httpUrl);
socketUrl.protocol = httpUrl.protocol.replace("http", "ws");

// A client for each subscription, because a shared one would keep its first connection, and with it the headers of
// the first subscription. It disconnects when the subscription ends.
function subscribe(headers, request, sink) {
  const client = graphqlWs.createClient({
    url: socketUrl.href,
    connectionParams: headers,
    // By default a bad token is tried again for half a minute, with nothing on the screen.
    shouldRetry: (event) => event instanceof CloseEvent && event.code !== FORBIDDEN,
  });
  return client.subscribe(request, {
    ...sink,
    // As an answer: after sink.error GraphiQL leaves a promise behind that nobody catches.
    error: (reason) => {
      sink.next({ errors: errorsOf(reason) });
      sink.complete();
    },
  });
}

function errorsOf(reason) {
  if (Array.isArray(reason)) return reason;
  if (reason.code === FORBIDDEN) return [{ message: REFUSED }];
  return [{ message: reason.code ? `The connection closed: ${reason.code} ${reason.reason}`.trim() : String(reason) }];
}

function fetcher(request, options) {
  const wsClient = { subscribe: (...args) => subscribe(options?.headers, ...args) };
  return GraphiQL.createFetcher({ url: httpUrl.href, wsClient })(request, options);
}

const graphiql = React.createElement(
  GraphiQL,
  { fetcher, defaultQuery: WELCOME, defaultHeaders: HEADERS, defaultEditorToolsVisibility: "headers" },
  React.createElement(GraphiQL.Logo, null, "TaskFlow GQL"),
);
ReactDOM.createRoot(document.getElementById("graphiql")).render(graphiql);
