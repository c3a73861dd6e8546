//go:build !purego

#include "textflag.h"

// EACH is the body of all functions. SUB takes what is subtracted first.
#define EACH(SUB) \
	MOVQ dst+0(FP), DI \
	MOVQ a+8(FP), SI \
	MOVQ b+16(FP), DX \
	MOVQ size+24(FP), CX \
loop: \
	VMOVDQU (SI), Y0 \
	VMOVDQU 32(SI), Y1 \
	SUB (DX), Y0, Y0 \
	SUB 32(DX), Y1, Y1 \
	VMOVDQU Y0, (DI) \
	VMOVDQU Y1, 32(DI) \
	ADDQ $64, SI \
	ADDQ $64, DX \
	ADDQ $64, DI \
	SUBQ $64, CX \
	JNZ loop \
	VZEROUPPER \
	RET

// func vectors8(dst, a, b unsafe.Pointer, size int)
TEXT ·vectors8(SB), NOSPLIT, $0-32
	EACH(VPSUBB)

// func vectors16(dst, a, b unsafe.Pointer, size int)
TEXT ·vectors16(SB), NOSPLIT, $0-32
	EACH(VPSUBW)

// func vectors32(dst, a, b unsafe.Pointer, size int)
TEXT ·vectors32(SB), NOSPLIT, $0-32
	EACH(VPSUBD)

// func vectors64(dst, a, b unsafe.Pointer, size int)
TEXT ·vectors64(SB), NOSPLIT, $0-32
	EACH(VPSUBQ)
