import pytest

from pqkv.speed.sass import loops, parse, phases, streaming_loop

SAMPLE = """
	.target	sm_90
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P0 BRA `(.L_x_9) ;
.L_x_query:
        /*0020*/                   LDG.E.64 R2, desc[UR4][R8.64] ;
        /*0030*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0040*/                   STS.128 [R5], R4 ;
        /*0050*/               @P1 BRA `(.L_x_query) ;
.L_x_table:
        /*0060*/                   LDG.E.64 R2, desc[UR4][R8.64] ;
        /*0070*/                   F2FP.F16.F32.PACK_AB R2, R3, R2 ;
        /*0080*/                   STS [R5], R2 ;
        /*0090*/                   VIADD R5, R5, 0x80 ;
        /*00a0*/               @P1 BRA `(.L_x_table) ;
.L_x_outer:
        /*00b0*/                   IMAD.MOV.U32 R30, RZ, RZ, RZ ;
.L_x_keys:
        /*00c0*/                   PRMT R10, R6, 0x4440, RZ ;
        /*00d0*/                   LDS R12, [UR12+0x200] ;
        /*00e0*/                   LEA R10, R10, R20, 0x2 ;
        /*00f0*/                   LDG.E R6, desc[UR4][R8.64] ;
        /*0100*/                   LDS R10, [R10] ;
        /*0110*/              @!P3 BRA `(.L_x_cold) ;
.L_x_back:
        /*0120*/                   FADD R16, R16, R10 ;
        /*0130*/               @P2 BRA `(.L_x_keys) ;
        /*0140*/               @P1 BRA `(.L_x_outer) ;
        /*0150*/                   SHFL.BFLY PT, R3, R2, 0x1, 0x1f ;
.L_x_values:
        /*0160*/                   LDG.E.128 R4, desc[UR4][R8.64] ;
        /*0170*/                   LOP3.LUT R10, R7, 0xff, RZ, 0xc0, !PT ;
        /*0180*/                   LEA R10, R10, R20, 0x7 ;
        /*0190*/                   LDS.128 R24, [R11] ;
        /*01a0*/                   LDS R10, [R10] ;
        /*01b0*/                   HFMA2.MMA R16, R10, R24, R16 ;
        /*01c0*/                   BRA P0, `(.L_x_values) ;
.L_x_9:
        /*01d0*/                   EXIT ;
.L_x_cold:
        /*01e0*/                   VIADD R16, R16, 0x1 ;
        /*01f0*/                   BRA `(.L_x_back) ;
.L_x_end:
        /*0200*/                   BRA `(.L_x_end);
"""


def as_cuobjdump(text):
    """The same as `cuobjdump -sass` prints it: branches to addresses, encodings behind."""
    labels, address = {}, 0
    for line in text.splitlines():
        if line.startswith(".L_x"):
            labels[line[:-1]] = address
        elif "/*" in line:
            address = int(line.split("/*")[1].split("*/")[0], 16) + 16
    lines = []
    for label, place in labels.items():
        text = text.replace(f"`({label})", f"{place:#x}")
    for line in text.splitlines():
        if not line.startswith(".L_x"):
            lines += [line + "   /* 0x0000000000007947 */", " " * 60 + "/* 0x000fea0003800000 */"]
    return "\n".join(lines)


@pytest.fixture(params=["nvdisasm", "cuobjdump"])
def text(request):
    return SAMPLE if request.param == "nvdisasm" else as_cuobjdump(SAMPLE)


def test_innermost_loops_are_found_with_the_code_that_was_moved_away(text):
    found = loops(text)
    assert [loop.instructions[0].address for loop in found] == [0x20, 0x60, 0xC0, 0x160, 0x200]
    keys = found[2]  # not the loop around it, and with the two instructions at the end
    assert [one.address for one in keys.instructions] == [*range(0xC0, 0x140, 16), 0x1E0, 0x1F0]


def test_a_lookup_is_a_load_whose_address_descends_from_a_code(text):
    seen = phases(text)
    # the code of this iteration was loaded in the one before; the query at [UR12] is no look-up
    assert (seen.keys.lookups, seen.keys.other_loads, seen.keys.loads) == (1, 1, 1)
    # R7 is the last of four registers of one load; weights at [R11] are no look-up
    assert (seen.values.lookups, seen.values.other_loads, seen.values.loads) == (1, 4, 1)
    assert len(seen.values.instructions) == 7


def test_the_loop_that_builds_tables_is_not_the_one_that_fetches_the_query(text):
    seen = phases(text)
    assert seen.key_tables.instructions[0].address == 0x60
    assert seen.key_tables.stores == 1
    assert seen.value_tables is None


def test_the_next_function_does_not_count(text):
    code, _ = parse(text + "\n        /*0000*/                   EXIT ;")
    assert len(code) == 33


def test_text_without_loops_has_no_phases():
    assert phases("        /*0000*/                   EXIT ;").keys is None
    assert loops("") == []
    assert streaming_loop("") is None


def test_a_table_that_is_copied_past_the_registers_counts_its_words():
    load = "LDG.E.64 R2, desc[UR4][R8.64] ;\n        /*0070*/"
    copying = {
        load: load.replace("LDG.E.64 R2", "LDGSTS.E.BYPASS.128 [R5]"),
        "F2FP.F16.F32.PACK_AB R2, R3, R2": "NOP",
        "STS [R5], R2": "NOP",
    }
    copied = SAMPLE
    for old, new in copying.items():
        assert old in copied
        copied = copied.replace(old, new)
    table = phases(copied).key_tables
    assert (table.stores, len(table.instructions)) == (4, 5)
