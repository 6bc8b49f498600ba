// Drives the streams of a Verilated accelerator in whole buffers.
//
// The host side of the accelerator is one input stream and one output stream of 32-bit words; an accelerator that does
// not keep its weights has a stream of them, too. Calling into C once per clock cycle would cost far more than
// simulating the cycle, so this file runs the cycles and Python hands over buffers. It knows the streams and nothing of
// what the words mean.
//
// Input is offered at every cycle, or less often where the caller asks for stalls; so is readiness for output. Every
// cycle the output stream is checked against the rules: a word that is offered stays, unchanged, until it is taken,
// and whether one is offered does not depend on its being taken.

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#include "Vtop.h"
#include "api.h"
#include "verilated.h"

namespace {

// Kept in step with `Status` in verilated.py.
enum Status { DONE = 0, RUNNING = 1, TIMEOUT = 2, WITHDRAWN = 3, CHANGED = 4, DEPENDENT = 5, UNUSED = 6 };

// What the input carries while it is not valid: a device that looks at it then computes nonsense, visibly.
constexpr uint32_t POISON = 0xdeadbeef;
constexpr int RESET_CYCLES = 4;

// The weights of a design that has no stream of them.
template <class Top, class = void>
struct Weights {
    bool feed(const uint32_t*, int64_t, const uint8_t*, int64_t) { return false; }
    void reset(Top&) {}
    bool drive(Top&) { return true; }
    bool taken(Top&) { return false; }
};

// Offers the same words to every run, in the cycles of a pattern that starts with the run and repeats itself. A word
// stays on offer until it is taken. See `WeightSource` in nomul_hw/timing.py, which counts exactly that.
template <class Top>
struct Weights<Top, std::void_t<decltype(std::declval<Top&>().weights___05Fvalid)>> {
    using Payload = std::remove_reference_t<decltype(std::declval<Top&>().weights___05Fpayload)>;
    static constexpr int64_t host_words = (sizeof(Payload) + 3) / 4;

    const uint32_t* words = nullptr;
    int64_t count = 0;
    const uint8_t* pattern = nullptr;
    int64_t period = 0;

    int64_t done = 0;
    int64_t at = 0;
    bool running = false;
    bool offering = false;

    bool feed(const uint32_t* new_words, int64_t words_count, const uint8_t* new_pattern, int64_t new_period) {
        words = new_words;
        count = words_count / host_words;
        pattern = new_pattern;
        period = new_period;
        return true;
    }

    void reset(Top& top) {
        top.weights___05Fvalid = 0;
        running = offering = false;
        done = at = 0;
    }

    // Before a cycle; false if a run is over and did not take all words.
    bool drive(Top& top) {
        if (bool(top.busy) != running) {
            running = top.busy;
            if (!running) return done == count;
            done = at = 0;
            offering = false;
        }
        if (running) {
            if (!offering && done < count) offering = pattern[at];
            if (++at == period) at = 0;
        }
        top.weights___05Fvalid = offering;
        const uint32_t* word = words + done * host_words;
        for (int64_t i = 0; i < host_words; ++i) put(top.weights___05Fpayload, i, offering ? word[i] : POISON);
        return true;
    }

    // After a cycle's evaluation, before its clock edge.
    bool taken(Top& top) {
        if (!offering || !top.weights___05Fready) return false;
        ++done;
        offering = false;
        return true;
    }

    static void put(Payload& payload, int64_t index, uint32_t word) {
        if constexpr (!std::is_integral_v<Payload>) {
            payload[index] = word;
        } else if constexpr (sizeof(Payload) == 8) {
            payload = index ? payload | uint64_t(word) << 32 : word;
        } else {
            payload = word;
        }
    }
};

struct Simulation {
    VerilatedContext context;
    Vtop top{&context};
    Weights<Vtop> weights;
    uint64_t cycles = 0;

    // Pauses: out of 256 cycles, how many offer no new input and how many take no output.
    uint32_t stall_in = 0;
    uint32_t stall_out = 0;
    uint64_t random = 1;

    // The transfer under way.
    const uint32_t* in = nullptr;
    int64_t in_count = 0;
    int64_t in_done = 0;
    uint32_t* out = nullptr;
    int64_t out_count = 0;
    int64_t out_done = 0;
    int64_t idle = 0;
    bool offering = false;

    // The output word that was offered and not taken in the cycle before.
    bool pending = false;
    uint32_t pending_payload = 0;

    ~Simulation() { top.final(); }

    bool chance(uint32_t per_256) {
        if (per_256 == 0) return false;
        random ^= random << 13;  // xorshift64
        random ^= random >> 7;
        random ^= random << 17;
        return (random >> 32 & 0xff) < per_256;
    }

    void clock_edge() {
        top.clk = 1;
        top.eval();
        top.clk = 0;  // settles with the inputs of the next cycle
        ++cycles;
    }

    void reset() {
        top.i___05Fvalid = 0;
        top.i___05Fpayload = POISON;
        top.o___05Fready = 0;
        weights.reset(top);
        top.clk = 0;
        top.rst = 1;
        for (int i = 0; i < RESET_CYCLES; ++i) {
            top.eval();
            clock_edge();
        }
        top.rst = 0;
        top.eval();
        offering = pending = false;
        in_count = in_done = out_count = out_done = idle = 0;
    }

    int cycle() {
        if (!offering && in_done < in_count) offering = !chance(stall_in);
        const bool ready = out_done < out_count && !chance(stall_out);
        top.i___05Fvalid = offering;
        top.i___05Fpayload = offering ? in[in_done] : POISON;
        if (!weights.drive(top)) return UNUSED;
        if (stall_out) {  // only where correctness is the aim: it costs an evaluation
            top.o___05Fready = !ready;
            top.eval();
            const bool valid = top.o___05Fvalid;
            const uint32_t payload = top.o___05Fpayload;
            top.o___05Fready = ready;
            top.eval();
            if (valid != bool(top.o___05Fvalid) || (valid && payload != top.o___05Fpayload)) return DEPENDENT;
        } else {
            top.o___05Fready = ready;
            top.eval();
        }
        const bool valid = top.o___05Fvalid;
        const uint32_t payload = top.o___05Fpayload;
        if (pending && !valid) return WITHDRAWN;
        if (pending && payload != pending_payload) return CHANGED;
        pending = valid && !ready;
        pending_payload = payload;
        ++idle;
        if (valid && ready) {
            out[out_done++] = payload;
            idle = 0;
        }
        if (offering && top.i___05Fready) {
            ++in_done;
            offering = false;
            idle = 0;
        }
        if (weights.taken(top)) idle = 0;
        clock_edge();
        return RUNNING;
    }
};

}  // namespace

NOMUL_API Simulation* nomul_new() {
    auto simulation = std::make_unique<Simulation>();
    simulation->reset();
    return simulation.release();
}

NOMUL_API void nomul_free(Simulation* simulation) { delete simulation; }

NOMUL_API void nomul_reset(Simulation* simulation) { simulation->reset(); }

NOMUL_API void nomul_stall(Simulation* simulation, uint32_t stall_in, uint32_t stall_out, uint64_t seed) {
    simulation->stall_in = stall_in;
    simulation->stall_out = stall_out;
    // One step of splitmix64: near seeds give unlike sequences, and the state is not 0, which xorshift would keep.
    uint64_t z = seed + 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    simulation->random = (z ^ z >> 31) | 1;
}

// Offer `count` host words of weights to every run that begins from now on, in the cycles of `pattern`. The buffers stay
// the caller's. Says whether the design has a stream of weights.
NOMUL_API int nomul_feed(Simulation* simulation, const uint32_t* words, int64_t count, const uint8_t* pattern,
                         int64_t period) {
    return simulation->weights.feed(words, count, pattern, period);
}

// Start sending `in` and collecting `out`; `nomul_run` does the work. The buffers stay the caller's.
NOMUL_API void nomul_begin(Simulation* simulation, const uint32_t* in, int64_t in_count, uint32_t* out,
                           int64_t out_count) {
    simulation->in = in;
    simulation->in_count = in_count;
    simulation->in_done = 0;
    simulation->out = out;
    simulation->out_count = out_count;
    simulation->out_done = 0;
    simulation->idle = 0;
    simulation->offering = false;  // a transfer that failed may have left a word on offer
}

// Run at most `budget` cycles. RUNNING: call again. TIMEOUT: `max_idle` cycles went by and no word moved.
NOMUL_API int nomul_run(Simulation* simulation, int64_t budget, int64_t max_idle) {
    while (simulation->in_done < simulation->in_count || simulation->out_done < simulation->out_count) {
        if (simulation->idle >= max_idle) return TIMEOUT;
        if (budget-- <= 0) return RUNNING;
        const int status = simulation->cycle();
        if (status != RUNNING) return status;
    }
    return DONE;
}

// Run `count` cycles without input and without taking output; say whether the device offers a word at their end.
NOMUL_API int nomul_idle(Simulation* simulation, int64_t count) {
    simulation->in_count = simulation->in_done = simulation->out_count = simulation->out_done = 0;
    simulation->offering = false;
    while (count-- > 0) {
        const int status = simulation->cycle();
        if (status != RUNNING) return -status;
    }
    return simulation->pending;
}

NOMUL_API int64_t nomul_sent(const Simulation* simulation) { return simulation->in_done; }
NOMUL_API int64_t nomul_received(const Simulation* simulation) { return simulation->out_done; }
NOMUL_API int nomul_pending(const Simulation* simulation) { return simulation->pending; }
NOMUL_API uint64_t nomul_cycles(const Simulation* simulation) { return simulation->cycles; }
