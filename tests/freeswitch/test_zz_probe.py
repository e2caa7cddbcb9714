import sys, time
sys.path.insert(0,'/work/main/tests/freeswitch')
import gevent
from real_switch import LOOPBACK, SIP
from callrec.demo.caller import CallScript
def probe(house, via, at):
    call = house.switch.place(CallScript("040404040", talk=0), via=via)
    call.until("prompting")
    if at == "asking":
        from fix_stack import wait_until
        wait_until(lambda: house.state(call) == "asking", 10)
    print("\n", via, at, house.switch.api(f"uuid_transfer {call.uuid} agent XML agents"))
    for _ in range(8):
        print(round(call.age,2), house.state(call), house.switch.api(f"uuid_getvar {call.uuid} current_application"), house.switch.api(f"uuid_exists {call.uuid}"),
          [r for r in house.switch.api("show channels").splitlines() if r.startswith(call.uuid)][:1])
        gevent.sleep(0.7)
    call.hang_up(); call.result(10); print(call.timeline, house.ledger(call))
def test_probe(house, capsys):
    with capsys.disabled():
        for via in (LOOPBACK, SIP):
            for at in ("notice","asking"):
                probe(house, via, at)
        call = house.switch.place(CallScript("040404045", talk=0))
        call.until("bridged"); gevent.sleep(1)
        a = call.agent()
        print(house.switch.api("show channels"))
        print(house.switch.api(f"uuid_hold {a}")); gevent.sleep(1); print(house.switch.api("show channels")); print(a, call.agent())
        print(house.switch.api(f"uuid_hold off {a}"), house.switch.api(f"uuid_hold off {call.uuid}"),house.switch.api(f"uuid_hold toggle {call.agent()}"))
        call.hang_up(); call.result(10)
