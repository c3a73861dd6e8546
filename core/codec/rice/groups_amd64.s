//go:build !purego

#include "textflag.h"

// Fields of groupArgs.
#define base_ 0
#define res_ 8
#define groups_ 16
#define first_ 24
#define table_ 32
#define mask_ 40
#define shift_ 48
#define classes_ 56
#define counts_ 64
#define slots_ 128
#define denseEnd_ 192
#define out_ 200
#define bytes_ 208

// The numbers of the classes, 64 times each.
DATA ids<>+0x000(SB)/8, $0x0000000000000000
DATA ids<>+0x008(SB)/8, $0x0101010101010101
DATA ids<>+0x010(SB)/8, $0x0202020202020202
DATA ids<>+0x018(SB)/8, $0x0303030303030303
DATA ids<>+0x020(SB)/8, $0x0404040404040404
DATA ids<>+0x028(SB)/8, $0x0505050505050505
DATA ids<>+0x030(SB)/8, $0x0606060606060606
DATA ids<>+0x038(SB)/8, $0x0707070707070707
GLOBL ids<>(SB), RODATA|NOPTR, $64

// SETUP loads what stays the same: the table that maps keys to classes, the
// mask and the shift of keys.
#define SETUP \
	MOVQ base_(AX), SI \
	MOVQ first_(AX), DI \
	MOVQ table_(AX), R9 \
	VMOVDQU64 (R9), Z24 \
	VMOVDQU64 64(R9), Z25 \
	VMOVDQU64 128(R9), Z26 \
	VMOVDQU64 192(R9), Z27 \
	VPBROADCASTQ mask_(AX), Z28 \
	VMOVQ shift_(AX), X29 \
	MOVQ $ids<>(SB), R12

// KEYS16 and KEYS32 leave the keys of 64 words of the base, a byte each, in Z0.
#define KEYS16 \
	VPANDQ (SI), Z28, Z0 \
	VPANDQ 64(SI), Z28, Z1 \
	ADDQ $128, SI \
	VPSRLW X29, Z0, Z0 \
	VPSRLW X29, Z1, Z1 \
	VPMOVWB Z0, Y0 \
	VPMOVWB Z1, Y1 \
	VINSERTI64X4 $1, Y1, Z0, Z0

#define KEYS32 \
	VPANDQ (SI), Z28, Z0 \
	VPANDQ 64(SI), Z28, Z1 \
	VPANDQ 128(SI), Z28, Z2 \
	VPANDQ 192(SI), Z28, Z3 \
	ADDQ $256, SI \
	VPSRLD X29, Z0, Z0 \
	VPSRLD X29, Z1, Z1 \
	VPSRLD X29, Z2, Z2 \
	VPSRLD X29, Z3, Z3 \
	VPMOVDB Z0, X0 \
	VPMOVDB Z1, X1 \
	VPMOVDB Z2, X2 \
	VPMOVDB Z3, X3 \
	VINSERTI128 $1, X1, Y0, Y0 \
	VINSERTI128 $1, X3, Y2, Y2 \
	VINSERTI64X4 $1, Y2, Z0, Z0

// CLASSES leaves the classes of the keys in Z4: each half of the table has 128
// keys, and the highest bit of the key tells which half holds it.
#define CLASSES \
	VMOVDQA64 Z0, Z4 \
	VMOVDQA64 Z0, Z5 \
	VPERMI2B Z25, Z24, Z4 \
	VPERMI2B Z27, Z26, Z5 \
	VPMOVB2M Z0, K1 \
	VMOVDQU8 Z5, K1, Z4

// MEMBERS leaves a bit for each word of class BX in R8.
#define MEMBERS \
	VPBROADCASTQ (R12)(BX*8), Z6 \
	VPCMPEQB Z6, Z4, K2 \
	KMOVQ K2, R8

// LOCATE finds the events of the 64 words. counts are the words of each class
// up to its next event; one that falls below zero says that it is here. The
// word of rank R10 within the group is where PDEP puts the bit.
#define LOCATE(class, event, again, next, dense, one, done, short) \
	XORL BX, BX \
	MOVQ classes_(AX), CX \
	TESTQ CX, CX \
	JZ dense \
class: \
	MEMBERS \
	POPCNTQ R8, R9 \
	SUBQ R9, counts_(AX)(BX*8) \
	JLT event \
next: \
	INCQ BX \
	CMPQ BX, CX \
	JLT class \
	JMP dense \
event: \
	MOVQ counts_(AX)(BX*8), R10 \
	ADDQ R9, R10 \
	MOVQ slots_(AX)(BX*8), R11 \
again: \
	MOVL (R11), R13 \
	MOVL $1, DX \
	SHLXQ R10, DX, DX \
	PDEPQ R8, DX, DX \
	TZCNTQ DX, DX \
	ADDQ DI, DX \
	MOVL DX, (R11) \
	ADDQ $4, R11 \
	MOVL (R11), DX \
	SUBL R13, DX \
	ADDQ DX, R10 \
	CMPQ R10, R9 \
	JLT again \
	SUBQ R9, R10 \
	MOVQ R10, counts_(AX)(BX*8) \
	MOVQ R11, slots_(AX)(BX*8) \
	JMP next \
dense: \
	MOVL $7, BX \
	MEMBERS \
	TESTQ R8, R8 \
	JZ done \
	POPCNTQ R8, R9 \
	MOVQ slots_(AX)(BX*8), R11 \
	LEAQ (R11)(R9*4), R13 \
	CMPQ R13, denseEnd_(AX) \
	JHI short \
	MOVQ R13, slots_(AX)(BX*8) \
one: \
	TZCNTQ R8, DX \
	ADDQ DI, DX \
	MOVL DX, (R11) \
	ADDQ $4, R11 \
	BLSRQ R8, R8 \
	JNZ one \
done:

// func locate16(a *groupArgs)
TEXT ·locate16(SB), NOSPLIT, $0-8
	MOVQ a+0(FP), AX
	SETUP

group:
	KEYS16
	CLASSES
	LOCATE(class, event, again, next, dense, one, done, short)
	ADDQ $64, DI
	DECQ groups_(AX)
	JNZ group

short:
	VZEROUPPER
	RET

// func locate32(a *groupArgs)
TEXT ·locate32(SB), NOSPLIT, $0-8
	MOVQ a+0(FP), AX
	SETUP

group:
	KEYS32
	CLASSES
	LOCATE(class, event, again, next, dense, one, done, short)
	ADDQ $64, DI
	DECQ groups_(AX)
	JNZ group

short:
	VZEROUPPER
	RET

// SCAN lists the words of which R15 has a bit, and the dense ones, with their
// ranks. counts are the words of each class before the group.
#define SCAN(class, next, event, dense, done) \
	XORL BX, BX \
	MOVQ classes_(AX), CX \
	TESTQ CX, CX \
	JZ dense \
class: \
	MEMBERS \
	MOVQ R8, R11 \
	ANDQ R15, R11 \
	JNZ event \
next: \
	POPCNTQ R8, R9 \
	ADDQ R9, counts_(AX)(BX*8) \
	INCQ BX \
	CMPQ BX, CX \
	JLT class \
	JEQ dense \
	JMP done \
event: \
	TZCNTQ R11, DX \
	BZHIQ DX, R8, R13 \
	POPCNTQ R13, R13 \
	ADDQ counts_(AX)(BX*8), R13 \
	ADDQ DI, DX \
	MOVL DX, (R10) \
	MOVL R13, 4(R10) \
	ADDQ $8, R10 \
	BLSRQ R11, R11 \
	JNZ event \
	JMP next \
dense: \
	MOVL $7, BX \
	MEMBERS \
	MOVQ R8, R11 \
	TESTQ R8, R8 \
	JNZ event \
done:

// func scan16(a *groupArgs)
TEXT ·scan16(SB), NOSPLIT, $0-8
	MOVQ a+0(FP), AX
	SETUP
	MOVQ res_(AX), R14
	MOVQ out_(AX), R10

group:
	KEYS16
	CLASSES
	VMOVDQU64 (R14), Z1
	VMOVDQU64 64(R14), Z2
	ADDQ $128, R14
	VPTESTMW Z1, Z1, K3
	VPTESTMW Z2, Z2, K4
	KUNPCKDQ K3, K4, K3
	KMOVQ K3, R15
	SCAN(class, next, event, dense, done)
	ADDQ $64, DI
	DECQ groups_(AX)
	JNZ group
	SUBQ out_(AX), R10
	MOVQ R10, bytes_(AX)
	VZEROUPPER
	RET

// func scan32(a *groupArgs)
TEXT ·scan32(SB), NOSPLIT, $0-8
	MOVQ a+0(FP), AX
	SETUP
	MOVQ res_(AX), R14
	MOVQ out_(AX), R10

group:
	KEYS32
	CLASSES
	VMOVDQU64 (R14), Z1
	VMOVDQU64 64(R14), Z2
	VPTESTMD Z1, Z1, K3
	VPTESTMD Z2, Z2, K4
	VMOVDQU64 128(R14), Z1
	VMOVDQU64 192(R14), Z2
	VPTESTMD Z1, Z1, K5
	VPTESTMD Z2, Z2, K6
	ADDQ $256, R14
	KUNPCKWD K3, K4, K3
	KUNPCKWD K5, K6, K5
	KUNPCKDQ K3, K5, K3
	KMOVQ K3, R15
	SCAN(class, next, event, dense, done)
	ADDQ $64, DI
	DECQ groups_(AX)
	JNZ group
	SUBQ out_(AX), R10
	MOVQ R10, bytes_(AX)
	VZEROUPPER
	RET
