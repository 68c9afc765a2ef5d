/* Entry, descriptor tables, and the ways into ring 0: idle, say, reset, and what must not happen.
 *
 * The probe's C code runs in ring 3. A KVM without hardware virtualization interprets what a guest does in ring 0,
 * a microsecond or more for each instruction, and runs ring 3 at full speed; elsewhere it makes no difference. The
 * gate is `hlt` in ring 3, a general protection fault everywhere (`int` and `syscall` aren't interpreted everywhere).
 * Interrupts stay masked but for the moment of a real `hlt`: they only wake it up, the rings are polled.
 *
 * Firecracker enters in 64-bit mode with RSI = boot_params (Linux Documentation/arch/x86/boot.rst, "64-bit Boot
 * Protocol") and the first GiB mapped. Descriptors and gates: Intel SDM volume 3A, chapters 3, 6 and 8.
 */
#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_DATA 0x1b
#define USER_CODE 0x23
#define TASK 0x28
#define BASE 0x100000 /* probe.ld; its low 16 bits are 0, so that `x - probe_entry` is a gate's low half */

    .section .start, "ax"
    .code64
    .globl probe_entry
probe_entry:
    cli
    cld
    lgdt gdt_pointer
    lidt idt_pointer
    mov $KERNEL_DATA, %eax
    mov %eax, %ss
    mov $TASK, %eax
    ltr %ax
    mov $page_map, %eax
    mov %rax, %cr3
    mov $user_stack_top, %esp
    mov %rsi, %rbx
    call machine_boot /* in ring 0: the clock's rate, the interrupt controller */
    mov %rbx, %rdi
    mov $ring0_top, %esp
    push $USER_DATA
    push $user_stack_top - 8
    push $2 /* RFLAGS: interrupts off */
    push $USER_CODE
    push $probe_main
    iretq

    .globl machine_idle
machine_idle:
    hlt
    ret

    .globl machine_say
machine_say:
    hlt
    ret

    .globl machine_reset
machine_reset:
    hlt

/* From ring 3 the frame begins at ring0_top: error code, RIP, CS, RFLAGS, RSP, SS. */
protection_fault:
    cmpq $machine_idle, 8(%rsp)
    jne 1f
    sti
    hlt /* with what came in the meantime it returns at once */
woken:
    mov $ring0_top - 40, %esp
    incq (%rsp) /* the instruction after `hlt` */
    iretq
1:  cmpq $machine_say, 8(%rsp)
    jne 2f
    call machine_say_in_ring0
    jmp woken
2:  cmpq $machine_reset, 8(%rsp)
    jne 3f
    call machine_reset_in_ring0
3:  pushq $13
    jmp dead

    .macro fault vector, has_code
fault_\vector:
    .if \has_code == 0
    pushq $0
    .endif
    pushq $\vector
    jmp dead
    .endm
    .irp vector, 0, 1, 2, 3, 4, 5, 6, 7, 9, 15, 16, 18, 19, 20, 22, 23, 24, 25, 26, 27, 28, 31
    fault \vector, 0
    .endr
    .irp vector, 8, 10, 11, 12, 14, 17, 21, 29, 30
    fault \vector, 1
    .endr
dead:
    mov (%rsp), %rdi
    mov 16(%rsp), %rsi
    mov %cr2, %rdx
    and $-16, %rsp
    call machine_panic

    .macro gate handler
    .word \handler - probe_entry, KERNEL_CODE
    .byte 0, 0x8e
    .word BASE >> 16
    .quad 0
    .endm

    .balign 16
idt:
    .irp vector, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
    gate fault_\vector
    .endr
    gate protection_fault
    .irp vector, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    gate fault_\vector
    .endr
    .rept 16
    gate woken
    .endr
idt_end:

    .balign 16
gdt: /* all marked as accessed, so that the processor writes nothing here */
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    .word task_end - task - 1, task - probe_entry
    .byte BASE >> 16, 0x89, 0, 0
    .quad 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word idt_end - idt - 1
    .quad idt

    .balign 16
task:
    .long 0
    .quad ring0_top /* RSP0 */
    .skip 88
    .word 0
    .word task_end - task /* no I/O permissions */
task_end:

/* The first GiB in pages of 2 MiB: present, writable, for ring 3, accessed and dirty already. machine.c adds the rest.
 * Pages of 1 GiB would be simpler; not every KVM offers them. */
    .section .data.tables, "aw"
    .balign 4096
    .globl page_map, page_pointers
page_map:
    .quad page_pointers + 0x27
    .skip 4088
page_pointers:
    .quad first_directory + 0x27
    .skip 4088
first_directory:
    .set address, 0
    .rept 512
    .quad address + 0xe7
    .set address, address + 0x200000
    .endr

    .section .bss.hot, "aw", @nobits
    .balign 4096
    .skip 4096 + 3072 /* of which a normal day touches the last page */
user_stack_top:
    .skip 1024
ring0_top: /* a page's end */

    .section .note.GNU-stack, "", @progbits
