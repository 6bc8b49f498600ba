// s = g(a, b) + f(b, c, d), where f and g are functions bit by bit; F and G hold their values for {d, c, b} and {b, a}.
// The LUT in front of the carry has six inputs: it takes in what f is made of.
module nomul_adder_xilinx #(
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
`ifdef SYNTHESIS
  wire [WIDTH-1:0] left = {WIDTH{G[0]}} & ~b & ~a | {WIDTH{G[1]}} & ~b & a
      | {WIDTH{G[2]}} & b & ~a | {WIDTH{G[3]}} & b & a;
  wire [WIDTH-1:0] right = {WIDTH{F[0]}} & ~d & ~c & ~b | {WIDTH{F[1]}} & ~d & ~c & b
      | {WIDTH{F[2]}} & ~d & c & ~b | {WIDTH{F[3]}} & ~d & c & b
      | {WIDTH{F[4]}} & d & ~c & ~b | {WIDTH{F[5]}} & d & ~c & b
      | {WIDTH{F[6]}} & d & c & ~b | {WIDTH{F[7]}} & d & c & b;
  localparam QUADS = (WIDTH + 3) / 4;
  wire [4*QUADS-1:0] differ = left ^ right, generated = left, si;
  wire [4*QUADS-1:0] carry;
  assign s = si[WIDTH-1:0];
  genvar i;
  generate
    for (i = 0; i < QUADS; i = i + 1) begin : quad
      if (i == 0)
        CARRY4 cell_i (.CI(1'b0), .CYINIT(1'b0), .DI(generated[3:0]), .S(differ[3:0]), .O(si[3:0]), .CO(carry[3:0]));
      else
        CARRY4 cell_i (.CI(carry[4*i-1]), .CYINIT(1'b0), .DI(generated[4*i+:4]), .S(differ[4*i+:4]), .O(si[4*i+:4]),
                       .CO(carry[4*i+:4]));
    end
  endgenerate
`else
  wire [WIDTH-1:0] left = {WIDTH{G[0]}} & ~b & ~a | {WIDTH{G[1]}} & ~b & a
      | {WIDTH{G[2]}} & b & ~a | {WIDTH{G[3]}} & b & a;
  wire [WIDTH-1:0] right = {WIDTH{F[0]}} & ~d & ~c & ~b | {WIDTH{F[1]}} & ~d & ~c & b
      | {WIDTH{F[2]}} & ~d & c & ~b | {WIDTH{F[3]}} & ~d & c & b
      | {WIDTH{F[4]}} & d & ~c & ~b | {WIDTH{F[5]}} & d & ~c & b
      | {WIDTH{F[6]}} & d & c & ~b | {WIDTH{F[7]}} & d & c & b;
  assign s = left + right;
`endif
endmodule
