// The function that asks the person for an access token, for `session.mjs`. The first token may be given.

export const makeSignIn = ({ url, token, username, password }, write) => async () => {
  if (token) {
    const first = token
    token = null
    return first
  }
  const query = 'mutation($input: LoginInput!) { login(input: $input) { accessToken errors { code } } }'
  const variables = { input: { usernameOrEmail: username, password } }
  const headers = { 'Content-Type': 'application/json' }
  const answer = await fetch(url, { method: 'POST', headers, body: JSON.stringify({ query, variables }) })
  const { accessToken, errors } = (await answer.json()).data.login
  if (errors.length) throw new Error(`Cannot sign in: ${errors[0].code}`)
  write('signed in')
  return accessToken
}
