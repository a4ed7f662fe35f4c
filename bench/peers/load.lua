-- For wrk: posts the requests of a file in turn, and prints what came of it as JSON.
-- Each line of the file is a token, a tab, and the JSON to post.

local posts, place = {}, 0
failures, failure = 0, ""

function init(arguments)
  for line in io.lines(arguments[1]) do
    local token, body = line:match("^(.-)\t(.*)$")
    local headers = { ["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. token }
    posts[#posts + 1] = wrk.format("POST", nil, headers, body)
  end
end

function request()
  place = place % #posts + 1
  return posts[place]
end

-- Every server begins an error of GraphQL, and taskflow one of a mutation's input, with its message.
function response(status, _, body)
  if status ~= 200 or body:find('[{"message"', 1, true) then
    failures = failures + 1
    failure = status .. " " .. body:sub(1, 300)
  end
end

local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
end

function done(summary, latency)
  local thread, errors = threads[1], summary.errors
  local failed = thread:get("failures") + errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format(
    '\n{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "failed": %d, "failure": "%s"}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), failed,
    thread:get("failure"):gsub('[%c"\\]', " ")
  ))
end
