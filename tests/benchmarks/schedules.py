"""A schedule of twelve bundles, as libtpu writes it."""

from benchmarks.tpu_bundles import Replay, replay

SCHEDULE = """
   0   :  { %s9_s0 = smov.u32 0 /* copy */  ;;  %s1_s1 = inlined_call_operand.hbm [shape: f32[8], index: 0] }
 0x1 LB: > { %s2_s0 = sphi %s9_s0, %s3_s0 /* iteration */  ;;  %v1_v0 = vld [vmem:[%s1_s1] sm:$0xff] }
 0x2   : > { %s3_s0 = sadd.s32 1, %s2_s0  ;;  %p4_p0 = scmp.eq.s32.totalorder %s2_s0, 0 }
 0x3   : > { %p5_p1 = scmp.ge.s32.totalorder %s3_s0, 6  ;;  %7 = sst [smem:[#allocation3_spill]] %s3_s0 }
 0x4   : > { %8 = dma.hbm_to_vmem [thread:$0]  (%p4_p0), /*hbm=*/%s1_s1, /*size_in_granules=*/5, /*vmem=*/%s1_s1 /*
iteration_bounds: (2, 3) */ }
 0x5   : > { %10 = sbr.rel (!%p4_p0) target bundleno = 9 (0x9) }
 0x6   : > {}
 0x7   : > { %11 = dma.vmem_to_hbm [thread:$0]  /*vmem=*/%s1_s1, /*size_in_granules=*/%s6_s2, /*hbm=*/%s1_s1 }
 0x8   : > { %v2_v0 = vmov 0.0 }
 0x9 PF: > { %s12_s3 = sld [smem:[#allocation3_spill]]  ;;  %13 = sbr.rel (!%p5_p1) target bundleno = 1 (0x1) }
 0xa   : > {}
 0xb   :  { %s6_s2 = smov.u32 7 }
"""


def replayed(schedule: str = SCHEDULE, turns: int | None = None) -> Replay:
    rows = "\n".join("1 0 1 0" if i == 1 else "0 0 0 0" for i in range(12))
    utilization = f"== CAPACITY:\nMATMUL, XLU, VLOAD:FILL, VSTORE:SPILL\n4 3 1 1\n== UTILIZATION:\n{rows}\n"
    return replay(schedule, utilization, core=0, delay_slots=1, granule_bytes=32, turns=turns)
