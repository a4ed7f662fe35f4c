"""Takes README's picture of a live subscription: python -m tests.browser.picture docs/graphiql-subscription.png"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.browser.graphiql import GraphiQL, chromium, post, register, taskflow_serve

WATCH = """# What others do to my tasks, as it happens.
subscription Watch {
  taskChanged {
    kind
    changedFields
    previous { status }
    task {
      title
      status
      priority
      assignee { fullName }
    }
    actor { fullName }
    occurredAt
  }
}
"""


def take_picture(path: Path, folder: Path) -> None:
    with taskflow_serve(folder) as address, chromium() as browser:
        ada, grace = register(address, "ada", "Ada Lovelace"), register(address, "grace", "Grace Hopper")
        grace_id = post(address, "{ me { id } }", grace)["me"]["id"]
        created = post(
            address,
            f"""mutation {{ createTask(input: {{
              title: "Write the launch announcement", priority: HIGH, assigneeId: "{grace_id}"
            }}) {{ task {{ id }} }} }}""",
            ada,
        )
        task_id = created["createTask"]["task"]["id"]

        page = GraphiQL(browser, address)
        page.sign_in(ada)
        page.start(WATCH)
        page.wait_until_live(ada)
        post(
            address,
            f'mutation {{ setTaskStatus(input: {{id: "{task_id}", status: IN_PROGRESS}}) {{ task {{ id }} }} }}',
            grace,
        )
        page.wait_until_shown("Write the launch announcement")
        browser.save_screenshot(str(path))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        take_picture(Path(sys.argv[1]), Path(name))
