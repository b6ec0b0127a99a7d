// A team of threads that run one program together and share the tasks of each of its phases.
//
// Every member executes the same code (`Program`) and waits for the others at the end of each
// phase. Chance decides which member takes which task; results do not depend on it, because one
// task computes each number, in a fixed order. The threads exist during one call into the library
// only, so a process may fork between calls, and there is no global state.

#ifndef MICROGPT_TEAM_H
#define MICROGPT_TEAM_H

#include <stdatomic.h>

#include "vector.h"

#ifndef MICROGPT_THREADS
#define MICROGPT_THREADS 1  // 0: build without threads; every team has one member
#endif

#if MICROGPT_THREADS
#include <pthread.h>
#include <sched.h>
#define MAX_MEMBERS 64
#else
#define MAX_MEMBERS 1
#endif

#define SPINS 4000  // some 50 us; after that, yield the processor

typedef struct {
    atomic_int n_members;                     // 0 until all have been started
    _Alignas(64) _Atomic isize next_ticket;   // a phase has one per task, and an end per member
    _Alignas(64) _Atomic isize n_arrived;     // over all phases
    _Alignas(64) _Atomic isize n_phases;      // completed
} Team;

typedef struct {
    Team *team;
    int number;  // 0..n_members-1
    int n_members;
    isize first_ticket;  // of the current phase
    isize phase;         // number of the current phase
} Member;

typedef void (*Program)(Member *member, void *arguments);

// Returns the next task of a phase, 0..n_tasks-1, or -1 if none is left.
INLINE isize next_task(Member *member, isize n_tasks) {
    _Atomic isize *next = &member->team->next_ticket;
    isize ticket;
    if (member->n_members > 1) {
        ticket = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
    } else {  // without an atomic addition, whose cost shows in short documents
        ticket = atomic_load_explicit(next, memory_order_relaxed);
        atomic_store_explicit(next, ticket + 1, memory_order_relaxed);
    }
    return ticket - member->first_ticket < n_tasks ? ticket - member->first_ticket : -1;
}

#if MICROGPT_THREADS

INLINE void pause_for(isize n_waited) {
    if (n_waited > SPINS)
        sched_yield();
#if defined(__x86_64__) || defined(__i386__)
    else
        __builtin_ia32_pause();
#elif defined(__aarch64__)
    else
        __asm__ volatile("yield");
#endif
}

static void wait_for_others(Member *member) {
    Team *team = member->team;
    const isize n_before = atomic_fetch_add_explicit(&team->n_arrived, 1, memory_order_acq_rel);
    if (n_before + 1 == member->phase * member->n_members)
        atomic_store_explicit(&team->n_phases, member->phase, memory_order_release);
    for (isize i = 0;
         atomic_load_explicit(&team->n_phases, memory_order_acquire) < member->phase; i++)
        pause_for(i);
}

typedef struct {
    Member member;
    Program program;
    void *arguments;
} Start;

static void *start_member(void *argument) {
    Start *start = argument;
    Member *member = &start->member;
    for (isize i = 0; !(member->n_members = atomic_load_explicit(&member->team->n_members,
                                                                 memory_order_acquire));
         i++)
        pause_for(i);
    start->program(member, start->arguments);
    return NULL;
}

// Runs `program` on n_members threads, the calling one included; on fewer if the system refuses
// to start more.
static void run_team(isize n_members, Program program, void *arguments) {
    Team team = {0};
    Start starts[MAX_MEMBERS];
    pthread_t threads[MAX_MEMBERS];
    int n_started = 0;
    do {
        starts[n_started] = (Start){{&team, n_started, 0, 0, 0}, program, arguments};
        if (n_started > 0 &&
            pthread_create(&threads[n_started], NULL, start_member, &starts[n_started]))
            break;
        n_started++;
    } while (n_started < n_members && n_started < MAX_MEMBERS);
    atomic_store_explicit(&team.n_members, n_started, memory_order_release);
    start_member(&starts[0]);
    for (int i = 1; i < n_started; i++) pthread_join(threads[i], NULL);
}

#else

static void wait_for_others(Member *member) { (void)member; }

static void run_team(isize n_members, Program program, void *arguments) {
    Team team = {.n_members = 1};
    Member member = {&team, 0, 1, 0, 0};
    (void)n_members;
    program(&member, arguments);
}

#endif

// Ends a phase of n_tasks tasks: waits until all members have finished theirs.
static void end_phase(Member *member, isize n_tasks) {
    member->first_ticket += n_tasks + member->n_members;
    member->phase++;
    if (member->n_members > 1) wait_for_others(member);
}

#endif
