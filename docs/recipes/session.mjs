// The access token. `signIn` is yours: a promise of a token, by the `login` mutation or by whoever issues your tokens.

export function makeSession(signIn) {
  let token = null
  const expired = () => {
    token = null
  }
  // One promise for all who ask, so that they sign in once.
  const newToken = () =>
    signIn().catch((error) => {
      expired()
      throw error
    })
  return { token: () => (token ??= newToken()), expired }
}
