//go:build !purego

#include "textflag.h"

// decodeRows: see rows_amd64.go and FORMAT.md. All 32 lanes at once, in two
// halves of 16, whose steps alternate so that one waits while the other works.
//
// Of each half: A, B, C are words w, w+1 and w+2 of each lane's bit string, OFF
// the bits of A already read. Two codes have at most 32 bits, so A moves on by
// one word at most in two steps, and C is fetched once for both.

// Fields of rowArgs.
#define out_ 0
#define base_ 8
#define rows_ 16
#define strings_ 24
#define table_ 32
#define pos_ 40
#define first_ 168
#define keyMask_ 296
#define lo_ 300
#define last_ 302
#define keyShift_ 304
#define skip_ 320
#define low_ 336
#define one_ 340
#define swap_ 344
#define t31_ 408
#define t32_ 412

// TRANSPOSE turns four vectors of four groups of 16 bytes, a to d, into four
// vectors of the groups' dwords 0 to 3, and back. Clobbers Z18 to Z23.
#define TRANSPOSE(a, b, c, d, p, q, r, s) \
	VPUNPCKLDQ b, a, Z22 \
	VPUNPCKHDQ b, a, Z23 \
	VPUNPCKLDQ d, c, Z18 \
	VPUNPCKHDQ d, c, Z19 \
	VPUNPCKLQDQ Z18, Z22, p \
	VPUNPCKHQDQ Z18, Z22, q \
	VPUNPCKLQDQ Z19, Z23, r \
	VPUNPCKHQDQ Z19, Z23, s

// FIRST gives the first table entries of the contexts of the base words d.
#define FIRST(d, f) \
	VPANDD Z26, d, f \
	VPSRLW keyShift_(AX), f, f \
	VPSUBUSW Z27, f, f \
	VPMINUW Z31, f, f \
	VPERMI2W Z25, Z24, f

// LOOK gives the window of the next 32 bits in Z18 and the table entry in Z20.
// Z19 has the first entry of the context.
#define LOOK(A, B, OFF) \
	VMOVDQA32 A, Z18 \
	VPSHLDVD OFF, B, Z18 \
	VPSRLD skip_(AX), Z18, Z20 \
	VPADDD Z20, Z19, Z19 \
	VPXORD Z20, Z20, Z20 \
	KXNORW K1, K1, K1 \
	VPGATHERDD (R9)(Z19*4), K1, Z20

// STEP adds the bits that the entry says, and its bias, to the base words in
// Z19, and moves on.
#define STEP(A, B, C, OFF, W) \
	VPANDD Z29, Z20, Z21 \
	VPSRLD $8, Z20, Z20 \
	VPADDD Z21, OFF, OFF \
	VPSUBD Z21, Z30, Z21 \
	VPSRLVD Z21, Z18, Z18 \
	VPADDD Z20, Z19, Z19 \
	VPADDD Z18, Z19, Z19 \
	VPTESTMD Z30, OFF, K2 \
	VMOVDQA32 B, K2, A \
	VMOVDQA32 C, K2, B \
	VPANDD Z29, OFF, OFF \
	VPADDD.BCST one_(AX), W, K2, W

#define EVEN(d, f, A, B, C, OFF, W) \
	VPANDD.BCST low_(AX), f, Z19 \
	LOOK(A, B, OFF) \
	VMOVDQA32 d, Z19 \
	STEP(A, B, C, OFF, W) \
	VMOVDQU16 Z19, K3, d

#define ODD(d, f, A, B, C, OFF, W) \
	VPSRLD $16, f, Z19 \
	LOOK(A, B, OFF) \
	VPSRLD $16, d, Z19 \
	STEP(A, B, C, OFF, W) \
	VPSLLD $16, Z19, Z19 \
	VMOVDQU16 Z19, K4, d \
	KXNORW K1, K1, K1 \
	VPGATHERDD 8(R8)(W*4), K1, C \
	VPSHUFB Z28, C, C

// PAIR decodes two words of all lanes: dwords d of the lower half of the
// lanes, e of the upper.
#define PAIR(d, e) \
	FIRST(d, Z22) \
	FIRST(e, Z23) \
	EVEN(d, Z22, Z8, Z9, Z10, Z11, Z12) \
	EVEN(e, Z23, Z13, Z14, Z15, Z16, Z17) \
	ODD(d, Z22, Z8, Z9, Z10, Z11, Z12) \
	ODD(e, Z23, Z13, Z14, Z15, Z16, Z17)

// FETCH loads word w + i of each lane.
#define FETCH(i, W, X) \
	KXNORW K1, K1, K1 \
	VPGATHERDD 4*i(R8)(W*4), K1, X \
	VPSHUFB Z28, X, X

// func decodeRows(a *rowArgs)
TEXT ·decodeRows(SB), NOSPLIT, $0-8
	MOVQ a+0(FP), AX
	MOVQ out_(AX), DI
	MOVQ base_(AX), SI
	MOVQ rows_(AX), CX
	MOVQ strings_(AX), R8
	MOVQ table_(AX), R9
	VMOVDQU64 first_(AX), Z24
	VMOVDQU64 (first_+64)(AX), Z25
	VPBROADCASTD keyMask_(AX), Z26
	VPBROADCASTW lo_(AX), Z27
	VMOVDQU64 swap_(AX), Z28
	VPBROADCASTD t31_(AX), Z29
	VPBROADCASTD t32_(AX), Z30
	VPBROADCASTW last_(AX), Z31
	MOVL $0x55555555, DX
	KMOVD DX, K3
	KNOTD K3, K4

	VMOVDQU64 pos_(AX), Z11
	VMOVDQU64 (pos_+64)(AX), Z16
	VPSRLD $5, Z11, Z12
	VPSRLD $5, Z16, Z17
	VPANDD Z29, Z11, Z11
	VPANDD Z29, Z16, Z16
	FETCH(0, Z12, Z8)
	FETCH(1, Z12, Z9)
	FETCH(2, Z12, Z10)
	FETCH(0, Z17, Z13)
	FETCH(1, Z17, Z14)
	FETCH(2, Z17, Z15)

row:
	VMOVDQU64 (SI), Z0
	VMOVDQU64 64(SI), Z1
	VMOVDQU64 128(SI), Z2
	VMOVDQU64 192(SI), Z3
	TRANSPOSE(Z0, Z1, Z2, Z3, Z0, Z1, Z2, Z3)
	VMOVDQU64 256(SI), Z4
	VMOVDQU64 320(SI), Z5
	VMOVDQU64 384(SI), Z6
	VMOVDQU64 448(SI), Z7
	TRANSPOSE(Z4, Z5, Z6, Z7, Z4, Z5, Z6, Z7)
	PAIR(Z0, Z4)
	PAIR(Z1, Z5)
	PAIR(Z2, Z6)
	PAIR(Z3, Z7)
	TRANSPOSE(Z0, Z1, Z2, Z3, Z0, Z1, Z2, Z3)
	TRANSPOSE(Z4, Z5, Z6, Z7, Z4, Z5, Z6, Z7)
	VMOVDQU64 Z0, (DI)
	VMOVDQU64 Z1, 64(DI)
	VMOVDQU64 Z2, 128(DI)
	VMOVDQU64 Z3, 192(DI)
	VMOVDQU64 Z4, 256(DI)
	VMOVDQU64 Z5, 320(DI)
	VMOVDQU64 Z6, 384(DI)
	VMOVDQU64 Z7, 448(DI)
	ADDQ $512, SI
	ADDQ $512, DI
	DECQ CX
	JNZ row

	VPSLLD $5, Z12, Z12
	VPSLLD $5, Z17, Z17
	VPORD Z11, Z12, Z12
	VPORD Z16, Z17, Z17
	VMOVDQU64 Z12, pos_(AX)
	VMOVDQU64 Z17, (pos_+64)(AX)
	VZEROUPPER
	RET
