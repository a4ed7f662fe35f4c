"use strict";

const WELCOME = `# Welcome to TaskFlow GQL.
#
# 1. Put the cursor into Register and press
#    Ctrl+Enter (⌘+Enter on a Mac).
# 2. Press "Sign in" above: ada, and the password
#    below. It puts a token into the Headers pane.
# 3. Run Watch. In a second window, signed in too,
#    run CreateTask: the task arrives here.
#
# Sign in again when the token has expired.
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

const FORBIDDEN = 4403;
const REFUSED = "The server refused the token in the Headers pane. Sign in again.";

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

// The Headers pane, and so the token, is kept in sessionStorage: over a reload, for this browser tab, until it is closed.
// GraphiQL can keep headers by itself (`shouldPersistHeaders`), but in localStorage: on the disk, for every tab, until
// somebody deletes them. So that is off, and its switch is hidden.
const KEPT_HEADERS = "taskflow:headers";

const signInDialog = document.getElementById("sign-in");
const signInForm = signInDialog.querySelector("form");
const signInProblem = signInDialog.querySelector("[role=alert]");

const LOGIN = `mutation($input: LoginInput!) { login(input: $input) { accessToken errors { message } } }`;

function headersWith(token) {
  return JSON.stringify({ Authorization: `Bearer ${token}` }, null, 2);
}

// Whether there is anything behind "Bearer".
function hasToken(headers) {
  return /"authorization"\s*:\s*"(?!(bearer)?\s*")/i.test(headers);
}

// The token, or an Error whose message is for the person.
async function login(usernameOrEmail, password) {
  let answer;
  try {
    const response = await fetch(httpUrl, {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify({ query: LOGIN, variables: { input: { usernameOrEmail, password } } }),
    });
    answer = await response.json();
  } catch {
    throw new Error("The server does not answer. Try again later.");
  }
  const errors = answer.errors ?? answer.data.login.errors;
  if (errors.length > 0) throw new Error(errors.map((error) => error.message).join(" "));
  return answer.data.login.accessToken;
}

// Opens the dialog, and calls back with the token of who signs in there.
function askWho(onToken) {
  signInForm.reset();
  signInProblem.textContent = "";
  signInForm.onsubmit = async (event) => {
    event.preventDefault();
    const { username, password, submit } = signInForm.elements;
    submit.disabled = true;
    signInProblem.textContent = "";
    try {
      onToken(await login(username.value, password.value));
      signInDialog.close();
    } catch (error) {
      signInProblem.textContent = error.message;
      password.select();
    } finally {
      submit.disabled = false;
    }
  };
  signInDialog.showModal();
}

function App() {
  const [headers, setHeaders] = React.useState(() => sessionStorage.getItem(KEPT_HEADERS) ?? headersWith(""));
  React.useEffect(() => sessionStorage.setItem(KEPT_HEADERS, headers), [headers]);

  const button = hasToken(headers)
    ? { children: "Sign out", onClick: () => setHeaders(headersWith("")) }
    : { children: "Sign in", onClick: () => askWho((token) => setHeaders(headersWith(token))) };
  return React.createElement(
    GraphiQL,
    {
      fetcher,
      headers,
      onEditHeaders: setHeaders,
      defaultQuery: WELCOME,
      // Of a new tab of GraphiQL's.
      defaultHeaders: headers,
      defaultEditorToolsVisibility: "headers",
      shouldPersistHeaders: false,
      showPersistHeadersSettings: false,
    },
    React.createElement(
      GraphiQL.Logo,
      null,
      React.createElement("span", { className: "title" }, "TaskFlow GQL"),
      React.createElement("button", { type: "button", className: "graphiql-button session-button", ...button }),
    ),
  );
}

signInDialog.querySelector("[name=cancel]").onclick = () => signInDialog.close();
ReactDOM.createRoot(document.getElementById("graphiql")).render(React.createElement(App));
