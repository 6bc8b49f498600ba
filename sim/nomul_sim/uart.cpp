// The far end of a Verilated design's serial line: bytes in buffers on one side, its pins rx and tx on the other.
//
// Many cycles run per call; see shim.cpp for why.

#include <cstdint>
#include <deque>

#include "Vtop.h"
#include "api.h"
#include "verilated.h"

namespace {

constexpr int RESET_CYCLES = 4;

struct Simulation {
    VerilatedContext context;
    Vtop top{&context};
    int cycles_per_bit;
    uint64_t cycles = 0;

    // To the design: what is waiting, the bits of the byte under way behind the present one, cycles of that.
    std::deque<uint8_t> waiting;
    int bits_out = 0;
    int bits_out_left = 0;
    int cycles_out_left = 0;

    // From the design: bits still to come, cycles until the next is sampled.
    int bits_in = 0;
    int bits_in_left = 0;
    int cycles_in_left = 0;
    uint64_t broken = 0;

    explicit Simulation(int cycles_per_bit) : cycles_per_bit(cycles_per_bit) {
        top.rx = 1;
        top.rst = 1;
        for (int i = 0; i < RESET_CYCLES; ++i) edge();
        top.rst = 0;
    }

    ~Simulation() { top.final(); }

    void edge() {
        top.clk = 1;
        top.eval();
        top.clk = 0;
        top.eval();
        ++cycles;
    }

    void send() {
        if (cycles_out_left) {
            --cycles_out_left;
            return;
        }
        if (!bits_out_left) {
            if (waiting.empty()) return;
            bits_out = waiting.front() << 1 | 1 << 9;
            bits_out_left = 10;
            waiting.pop_front();
        }
        top.rx = bits_out & 1;
        bits_out >>= 1;
        --bits_out_left;
        cycles_out_left = cycles_per_bit - 1;
    }

    // A byte that is complete, or -1.
    int receive() {
        if (!bits_in_left) {
            if (!top.tx) {
                bits_in_left = 10;
                cycles_in_left = cycles_per_bit / 2;
            }
            return -1;
        }
        if (--cycles_in_left) return -1;
        cycles_in_left = cycles_per_bit;
        bits_in = bits_in >> 1 | top.tx << 9;
        if (--bits_in_left) return -1;
        if (!top.tx || bits_in & 1) {
            ++broken;
            return -1;
        }
        return bits_in >> 1 & 0xff;
    }
};

}  // namespace

NOMUL_API Simulation* nomul_new(int cycles_per_bit) { return new Simulation(cycles_per_bit); }

NOMUL_API void nomul_free(Simulation* simulation) { delete simulation; }

// Queue bytes to send, run so many cycles, and give back what came; there is room for that.
NOMUL_API int64_t nomul_exchange(Simulation* simulation, const uint8_t* in, int64_t count, uint8_t* out,
                                 int64_t cycles) {
    simulation->waiting.insert(simulation->waiting.end(), in, in + count);
    int64_t received = 0;
    while (cycles-- > 0) {
        simulation->send();
        simulation->edge();
        const int byte = simulation->receive();
        if (byte >= 0) out[received++] = byte;
    }
    return received;
}

NOMUL_API uint64_t nomul_cycles(const Simulation* simulation) { return simulation->cycles; }

// Bytes of the design without a start or a stop bit: there must be none.
NOMUL_API uint64_t nomul_broken(const Simulation* simulation) { return simulation->broken; }
