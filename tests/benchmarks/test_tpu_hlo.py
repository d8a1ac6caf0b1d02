"""What a program copies, from its HLO."""

from benchmarks.tpu_hlo import copied_bytes

_HLO = """
%only_moves (p.1: bf16[8,128]) -> bf16[128,8] {
  %p.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %transpose.1 = bf16[128,8]{1,0} transpose(%p.1), dimensions={1,0}
}

%computes (p.2: bf16[8,128]) -> bf16[8,128] {
  %p.2 = bf16[8,128]{1,0} parameter(0)
  %copy.9 = bf16[8,128]{0,1} copy(%p.2)
  ROOT %add.1 = bf16[8,128]{0,1} add(%copy.9, %copy.9)
}

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %moved = bf16[128,8]{1,0} fusion(%x), kind=kLoop, calls=%only_moves
  %parts = (bf16[8,64]{1,0:T(8,128)S(1)}, bf16[8,64]{1,0}) fusion(%x), kind=kLoop, calls=%only_moves
  %computed = bf16[8,128]{0,1} fusion(%x), kind=kLoop, calls=%computes
  %prefetch = (bf16[8,128]{1,0:T(8,128)S(1)}, bf16[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %elsewhere = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%y)
  %free = bf16[1024]{0} bitcast(%x)
  ROOT %copy.1 = bf16[8,128]{1,0} copy(%computed)
}
"""


def test_only_moves_within_hbm_are_copies():
    assert copied_bytes(_HLO) == {"moved": 2048, "parts": 1024, "elsewhere": 4096, "copy.1": 2048}
