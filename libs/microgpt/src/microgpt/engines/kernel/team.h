// A team of threads that run one program together, and share out the tasks of each of its phases.
//
// Every member executes the same code (`Program`) and meets the others at the end of each phase.
// Which member takes which task is chance; results do not depend on it, since every number is
// computed by one task, in an order of its own. Threads live as long as one call into the library:
// nothing is left running, so a process may fork, and there is no global state.

#ifndef MICROGPT_TEAM_H
#define MICROGPT_TEAM_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define MAX_MEMBERS 64
#define SPINS 4000  // some 50 us; after that, let others have the processor

typedef struct {
    atomic_int n_members;                  // 0 until all have been started
    _Alignas(64) atomic_long next_ticket;  // a phase has one per task, and an end per member
    _Alignas(64) atomic_long n_arrived;    // over all phases
    _Alignas(64) atomic_long n_phases;     // completed
} Team;

typedef struct {
    Team *team;
    int number;         // 0..n_members-1
    int n_members;
    long first_ticket;  // of the current phase
    long phase;         // number of the current phase
} Member;

INLINE void pause_for(long n_waited) {
    if (n_waited > SPINS)
        sched_yield();
#if defined(__x86_64__) || defined(__i386__)
    else
        __builtin_ia32_pause();
#endif
}

// Hands out the tasks of a phase, 0..n_tasks-1; -1 when there are no more.
INLINE long next_task(Member *member, long n_tasks) {
    atomic_long *next = &member->team->next_ticket;
    long ticket;
    if (member->n_members > 1) {
        ticket = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
    } else {  // without the price of an atomic instruction, which short documents notice
        ticket = atomic_load_explicit(next, memory_order_relaxed);
        atomic_store_explicit(next, ticket + 1, memory_order_relaxed);
    }
    return ticket - member->first_ticket < n_tasks ? ticket - member->first_ticket : -1;
}

// Waits until all members have done their tasks of this phase.
static void end_phase(Member *member, long n_tasks) {
    Team *team = member->team;
    member->first_ticket += n_tasks + member->n_members;
    member->phase++;
    if (member->n_members == 1) return;
    const long n_arrived = 1 + atomic_fetch_add_explicit(&team->n_arrived, 1, memory_order_acq_rel);
    if (n_arrived == member->phase * member->n_members)
        atomic_store_explicit(&team->n_phases, member->phase, memory_order_release);
    for (long i = 0;
         atomic_load_explicit(&team->n_phases, memory_order_acquire) < member->phase; i++)
        pause_for(i);
}

typedef void (*Program)(Member *member, void *arguments);

typedef struct {
    Member member;
    Program program;
    void *arguments;
} Start;

static void *start_member(void *argument) {
    Start *start = argument;
    Member *member = &start->member;
    for (long i = 0; !(member->n_members = atomic_load_explicit(&member->team->n_members,
                                                                memory_order_acquire));
         i++)
        pause_for(i);
    start->program(member, start->arguments);
    return NULL;
}

// Runs `program` on n_members threads, this one among them; on fewer if the system refuses some.
static void run_team(int n_members, Program program, void *arguments) {
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

#endif
