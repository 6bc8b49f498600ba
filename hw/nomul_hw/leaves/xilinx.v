// LUTs beside each other: o = f(a, b, c, d, e, g), where F holds each one's values for {g, e, d, c, b, a}.
module nomul_luts_xilinx #(
    parameter WIDTH = 1,
    parameter [64*WIDTH-1:0] F = 0
) (
    input  wire [WIDTH-1:0] a,
    input  wire [WIDTH-1:0] b,
    input  wire [WIDTH-1:0] c,
    input  wire [WIDTH-1:0] d,
    input  wire [WIDTH-1:0] e,
    input  wire [WIDTH-1:0] g,
    output wire [WIDTH-1:0] o
);
  genvar i;
  generate
    for (i = 0; i < WIDTH; i = i + 1) begin : place
`ifdef SYNTHESIS
      LUT6 #(.INIT(F[64*i+:64])) lut (.I0(a[i]), .I1(b[i]), .I2(c[i]), .I3(d[i]), .I4(e[i]), .I5(g[i]), .O(o[i]));
`else
      wire [63:0] values = F[64*i+:64];
      assign o[i] = values[{g[i], e[i], d[i], c[i], b[i], a[i]}];
`endif
    end
  endgenerate
endmodule

// s = a + (a ^ f(a, b, c, d, e, g)): the LUT in front of a carry has six inputs, and takes in what is added.
module nomul_adder_xilinx #(
    parameter WIDTH = 1,
    parameter [64*WIDTH-1:0] F = 0
) (
    input  wire [WIDTH-1:0] a,
    input  wire [WIDTH-1:0] b,
    input  wire [WIDTH-1:0] c,
    input  wire [WIDTH-1:0] d,
    input  wire [WIDTH-1:0] e,
    input  wire [WIDTH-1:0] g,
    output wire [WIDTH-1:0] s
);
  wire [WIDTH-1:0] differ;
  nomul_luts_xilinx #(.WIDTH(WIDTH), .F(F)) luts (.a(a), .b(b), .c(c), .d(d), .e(e), .g(g), .o(differ));
`ifdef SYNTHESIS
  localparam QUADS = (WIDTH + 3) / 4;
  wire [4*QUADS-1:0] first = a, propagated = differ, total, carry;
  assign s = total[WIDTH-1:0];
  genvar i;
  generate
    for (i = 0; i < QUADS; i = i + 1) begin : quad
      if (i == 0)
        CARRY4 cell_i (.CI(1'b0), .CYINIT(1'b0), .DI(first[3:0]), .S(propagated[3:0]), .O(total[3:0]), .CO(carry[3:0]));
      else
        CARRY4 cell_i (.CI(carry[4*i-1]), .CYINIT(1'b0), .DI(first[4*i+:4]), .S(propagated[4*i+:4]), .O(total[4*i+:4]),
                       .CO(carry[4*i+:4]));
    end
  endgenerate
`else
  assign s = a + (a ^ differ);
`endif
endmodule
