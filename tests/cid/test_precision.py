"""Every switch by which torch may round float32 products: numbers stay, and the switch is put back.

torch does not tell all of a switch's state, so each case is a process of its own, forked from one that has
imported everything. What a switch says later, when the general one is set, is compared as well.
"""

import json
import subprocess
import sys

CASES = [
    "pass",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cudnn.allow_tf32 = False",
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "torch.backends.cudnn.conv.fp32_precision = 'tf32'",
    "torch.backends.cudnn.fp32_precision = 'ieee'",
    "torch.backends.cudnn.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'ieee'",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'bf16'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.backends.mkldnn.conv.fp32_precision = 'tf32'",
    "torch.autocast('cpu', torch.bfloat16).__enter__()",
]

SCRIPT = """
import hashlib, json, os, sys
import numpy as np
import torch
from cid import align, arrays, posterior, precision, recognition, weights

rng = np.random.default_rng(0)
vectors = rng.normal(size=(300, 32)).astype(np.float32) + 1
labels = np.arange(300) % 2
crops = torch.from_numpy(rng.integers(0, 256, (4, 3, 16, 16), dtype=np.uint8))
kernel = torch.from_numpy(rng.normal(size=(4, 3, 3, 3)).astype(np.float32))

def said(call):
    try:
        return str(call())
    except RuntimeError:
        return "mixed"

def state():
    b = torch.backends
    switches = [b, b.cudnn, b.mkldnn, b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul,
                b.mkldnn.conv, b.mkldnn.rnn]
    old = [torch.get_float32_matmul_precision, lambda: b.cuda.matmul.allow_tf32,
           lambda: b.cudnn.allow_tf32, lambda: (b.cudnn.enabled, b.cudnn.benchmark, b.cudnn.deterministic)]
    return [switch.fp32_precision for switch in switches] + [said(call) for call in old]

def compute():
    with align.exact():  # as every network is run
        convolved = torch.nn.functional.conv2d(crops.float(), kernel).numpy()
    found = [weights.cid_weights(vectors, labels), weights.surprise_weights(vectors, labels),
             posterior.without_class_direction(vectors, labels), convolved,
             recognition.embed(crops, "pixels", device="cpu").embedding.numpy()]
    return hashlib.sha256(b"".join(array.tobytes() for array in found)).hexdigest()

def case(code, machine, ours):
    if machine == "cuda":  # as where there is a GPU, so that its switches count, too
        torch.cuda.is_available = lambda: True
    exec(code)
    before = state()
    result = {}
    b = torch.backends
    if ours:
        with precision.true_float32(), precision.true_float32():
            switches = [b.mkldnn.matmul, b.mkldnn.conv]
            if machine == "cuda":
                switches += [b.cuda.matmul, b.cudnn.conv]
            result["inside"] = [switch.fp32_precision for switch in switches]
        if machine == "cpu":
            result["digest"] = compute()
            result["kind"] = str(arrays.unit_vectors(vectors).dtype)
        result["same"] = state() == before
    result["later"] = []
    for value in ("ieee", "tf32", "none"):
        b.fp32_precision = value
        result["later"].append(state())
    return result

compute()  # so that no case imports or loads anything
for code in json.loads(sys.argv[1]):
    for machine in ("cpu", "cuda"):
        for ours in (True, False):
            read, write = os.pipe()
            if os.fork() == 0:
                os.write(write, json.dumps(case(code, machine, ours)).encode())
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as pipe:
                print(pipe.read(), flush=True)
            os.wait()
"""


def test_no_switch_of_torch_changes_a_number_or_stays_changed():
    command = [sys.executable, "-c", SCRIPT, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line or "null") for line in done.stdout.splitlines()]
    cases = [code for code in CASES for _ in range(2)]
    digests = set()
    for code, ours, control in zip(cases, results[::2], results[1::2], strict=True):
        assert ours and control, f"{code}: {done.stderr}"
        assert ours["same"], code
        assert ours["later"] == control["later"], code
        assert not {"tf32", "bf16"} & set(ours["inside"]), code
        assert ours.get("kind", "torch.float32") == "torch.float32", code
        digests |= {ours.get("digest")}
    assert len(digests - {None}) == 1
