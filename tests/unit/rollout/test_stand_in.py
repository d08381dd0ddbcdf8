"""The stand-in for `vllm serve` that other tests sample from is as patient as a real one."""

import threading

from tests.support.sky import PATIENCE_S, Sky, check_whole


def test_a_server_that_samples_ends_when_it_is_told_to(servers, tmp_path):
    """And answers all else meanwhile: sampling takes as long as the machine is busy."""
    sky, begun, go_on = Sky(servers, tmp_path), threading.Event(), threading.Event()

    def slow(body):
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return servers[0]._by_the_model(body)

    sky.sync(0)
    servers[0].sampler = slow
    drafts = sky.add(8)
    try:
        assert begun.wait(PATIENCE_S)
        assert sky.rollout.backend.do(lambda session: sky.rollout.backend.held(session, sky.flight.servers[0]))
        servers[0].stop()
    finally:
        go_on.set()
    sky.wait(drafts)
    check_whole(drafts)
    sky.rollout.close()
