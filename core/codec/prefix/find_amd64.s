//go:build !purego

#include "textflag.h"

// Fields of findArgs.
#define base_ 0
#define res_ 8
#define pairs_ 16
#define steps_ 24
#define pages_ 32
#define leaf_ 40
#define first_ 48
#define keyMask_ 176
#define lo_ 180
#define last_ 182
#define keyShift_ 184
#define low_ 200
#define byte_ 204
#define leftOut_ 208
#define t31_ 212
#define lowDword_ 216

// func findPairs(a *findArgs)
//
// 16 words at a time: the page of each by context and high byte, the entry on
// it by the low byte; then each two words joined, as 64-bit numbers.
TEXT ·findPairs(SB), NOSPLIT, $0-8
	MOVQ a+0(FP), AX
	MOVQ base_(AX), SI
	MOVQ res_(AX), DX
	MOVQ pairs_(AX), DI
	MOVQ steps_(AX), CX
	MOVQ pages_(AX), R9
	MOVQ leaf_(AX), R10
	VMOVDQU64 first_(AX), Z24
	VMOVDQU64 (first_+64)(AX), Z25
	VPBROADCASTD keyMask_(AX), Z26
	VPBROADCASTW lo_(AX), Z27
	VPBROADCASTW last_(AX), Z28
	VPBROADCASTD low_(AX), Z29
	VPBROADCASTD byte_(AX), Z30
	VPBROADCASTD leftOut_(AX), Z31
	VPBROADCASTD t31_(AX), Z23
	VPBROADCASTQ lowDword_(AX), Z22
	TESTQ CX, CX
	JZ done

step:
	VPMOVZXWD (SI), Z0
	VPMOVZXWD (DX), Z1
	VPANDD Z26, Z0, Z0
	VPSRLW keyShift_(AX), Z0, Z0
	VPSUBUSW Z27, Z0, Z0
	VPMINUW Z28, Z0, Z0
	VPERMI2W Z25, Z24, Z0
	VPANDD Z29, Z0, Z0
	VPSRLD $8, Z1, Z2
	VPADDD Z2, Z0, Z0
	VPXORD Z3, Z3, Z3
	KXNORW K1, K1, K1
	VPGATHERDD (R9)(Z0*4), K1, Z3
	VPANDD Z30, Z1, Z2
	VPADDD Z2, Z3, Z3
	VPXORD Z4, Z4, Z4
	KXNORW K1, K1, K1
	VPGATHERDD (R10)(Z3*4), K1, Z4
	VPTESTMD Z31, Z4, K2
	KORTESTW K2, K2
	JNZ done

	VPSLLD $8, Z1, Z1
	VPADDD Z1, Z4, Z4  // bits from bit 8 on, their number below
	VPANDD Z23, Z4, Z5
	VPSRLD $8, Z4, Z4
	VPSRLQ $32, Z5, Z6  // number of the second
	VPSRLQ $32, Z4, Z7  // bits of the second
	VPANDQ Z22, Z4, Z4
	VPSLLVQ Z6, Z4, Z4
	VPORQ Z7, Z4, Z4
	VPSLLQ $8, Z4, Z4
	VPANDQ Z22, Z5, Z5
	VPADDQ Z6, Z5, Z5
	VPORQ Z5, Z4, Z4
	VMOVDQU64 Z4, (DI)
	ADDQ $32, SI
	ADDQ $32, DX
	ADDQ $64, DI
	DECQ CX
	JNZ step

done:
	MOVQ CX, steps_(AX)
	VZEROUPPER
	RET
