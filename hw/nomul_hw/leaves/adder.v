// s = g(a, b) + f(b, c, d), where f and g are functions bit by bit; F and G hold their values for {d, c, b} and {b, a}.
module nomul_adder_FAMILY #(
    parameter WIDTH = 1,
    parameter [7:0] F = 8'b0,
    parameter [3:0] G = 4'b0
) (
    input  wire [WIDTH-1:0] a,
    input  wire [WIDTH-1:0] b,
    input  wire [WIDTH-1:0] c,
    input  wire [WIDTH-1:0] d,
    output wire [WIDTH-1:0] s
);
  wire [WIDTH-1:0] left = {WIDTH{G[0]}} & ~b & ~a | {WIDTH{G[1]}} & ~b & a
      | {WIDTH{G[2]}} & b & ~a | {WIDTH{G[3]}} & b & a;
  wire [WIDTH-1:0] right = {WIDTH{F[0]}} & ~d & ~c & ~b | {WIDTH{F[1]}} & ~d & ~c & b
      | {WIDTH{F[2]}} & ~d & c & ~b | {WIDTH{F[3]}} & ~d & c & b
      | {WIDTH{F[4]}} & d & ~c & ~b | {WIDTH{F[5]}} & d & ~c & b
      | {WIDTH{F[6]}} & d & c & ~b | {WIDTH{F[7]}} & d & c & b;
`ifdef SYNTHESIS
CELLS
`else
  assign s = left + right;
`endif
endmodule
