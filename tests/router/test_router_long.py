"""The answer that takes longer than every guard but the request's own timeout."""

from router_harness import CHAT, LONG_SECONDS, Client, chat_body


def test_an_answer_that_takes_a_minute_comes_from_the_fleet(client: Client) -> None:
    """Waits a minute and works for none of it, so it is the first to start where tests run in several processes."""
    body = chat_body("night", x_test={"answer_delay": LONG_SECONDS})
    reply = client.ask(CHAT, body, timeout=2 * LONG_SECONDS)
    assert (reply.status, reply.backend, reply.attempts, reply.error) == (200, "fleet", 1, ""), str(reply)
    assert reply.total >= LONG_SECONDS
